"""All cases of the operations in one run."""

from collections.abc import Iterator
from typing import Any

from pgraft_fast_benchmarks import (
    bench_inverse,
    bench_lora,
    bench_philox_normal,
    bench_reward_filter,
    bench_solver_step,
    bench_training,
    goals,
)
from pgraft_fast_benchmarks.harness import Case, Each, Settings, copy_bandwidth, run_cases

GOALS = goals.GOALS
SHOWN = ("diffusers", "compile", "eager", "torch", "copy")
DETAILS: dict[str, str] = {}
DETAILS_NOTE = ""
_BENCHES = (
    bench_solver_step, bench_philox_normal, bench_reward_filter, bench_training, bench_inverse, bench_lora,
)  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    """Their names and sizes; tensors are made when a case is measured."""
    for bench in _BENCHES:
        yield from bench.cases(settings)


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all. each: told the label and the rows of a case when it is done."""
    bandwidth = copy_bandwidth(settings)
    return {**run_cases(cases(settings), settings, each, bandwidth), "copy_bytes_per_second": bandwidth}
