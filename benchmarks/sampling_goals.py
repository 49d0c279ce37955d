"""The goals of whole pipeline calls, as data beside the cases."""

from pgraft_fast_benchmarks.goal_kinds import AtMost, Goal, NotSlower, Times
from pgraft_fast_benchmarks.models import LARGE
from pgraft_fast_benchmarks.sampling_gpu import BATCHES, PEERS, STEPS

_GPU = [(case, batch) for case in LARGE for batch in BATCHES]

GOALS: tuple[Goal, ...] = (
    AtMost("digits", 16, limit=0.05),
    AtMost("digits", 1, limit=0.12),
    AtMost("tiny sd", 4, limit=0.03),
    Times("digits", 16, column="non_model_ms", factor=3.0),
    Times("digits", 1, column="non_model_ms", factor=3.0),
    Times("tiny sd", 4, column="non_model_ms", factor=3.0),
    NotSlower("compiled digits", 16),
    NotSlower("compiled tiny sd", 4),
    *(NotSlower(case, batch, STEPS, PEERS) for case, batch in _GPU),
    *(Times(case, 1, STEPS, PEERS, factor=1.3) for case in LARGE),
    *(
        AtMost(case, batch, STEPS, PEERS, column="host_ms_per_trajectory", limit=1.0, strict=True)
        for case, batch in _GPU
    ),
)
