"""The goals of a whole round, as data beside the cases."""

from pgraft_fast_benchmarks import round_gpu
from pgraft_fast_benchmarks.goal_kinds import Goal, NotSlower, Times

_ROUNDS = (("digits vp", 1600, 25), ("digits flow", 1600, 25))

GOALS: tuple[Goal, ...] = (
    *(NotSlower(*case, peers=("plain",)) for case in _ROUNDS),
    *(NotSlower(*case, peers=("plain compile",), mine="ours compile") for case in _ROUNDS),
    *(Times(*case, peers=("plain",), factor=1.15) for case in _ROUNDS),
    *(Times(*case, peers=("plain compile",), factor=1.15, mine="ours compile") for case in _ROUNDS),
    *(Times(*case, peers=("all rows",), factor=1.5) for case in _ROUNDS),
    Times("sd21", round_gpu.SAMPLES, round_gpu.STEPS, round_gpu.PEERS, factor=1.5, mine="ours compile graph"),
)
