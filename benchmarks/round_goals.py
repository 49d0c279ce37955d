"""The goals of a whole round, as data beside the cases."""

from pgraft_fast_benchmarks.goal_kinds import Goal, NotSlower, Times

_ROUNDS = (("digits vp", 1600, 25), ("digits flow", 1600, 25))

GOALS: tuple[Goal, ...] = (
    *(NotSlower(*one, peers=("plain",)) for one in _ROUNDS),
    *(NotSlower(*one, peers=("plain compile",), mine="ours compile") for one in _ROUNDS),
    *(Times(*one, peers=("plain",), factor=1.15) for one in _ROUNDS),
    *(Times(*one, peers=("plain compile",), factor=1.15, mine="ours compile") for one in _ROUNDS),
    *(Times(*one, peers=("all rows",), factor=1.5) for one in _ROUNDS),
)
