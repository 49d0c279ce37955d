"""All cases of the operations in one run."""

from collections.abc import Callable, Iterator
from typing import Any

from pgraft_fast_benchmarks import (
    bench_inverse,
    bench_philox_normal,
    bench_reward_filter,
    bench_solver_step,
    bench_training,
)
from pgraft_fast_benchmarks.environment import environment
from pgraft_fast_benchmarks.harness import Case, Row, Settings, copy_bandwidth, measure


def cases(settings: Settings) -> Iterator[Case]:
    """Their names and sizes; tensors are made when a case is measured."""
    for bench in (bench_solver_step, bench_philox_normal, bench_reward_filter, bench_training, bench_inverse):
        yield from bench.cases(settings)


def run(settings: Settings, each: Callable[[str, list[Row]], None]) -> dict[str, Any]:
    """Measure all. each: told the label and the rows of a case when it is done."""
    bandwidth = copy_bandwidth(settings)
    rows: list[Row] = []
    for case in cases(settings):
        found = measure(case, settings, bandwidth)
        each(case.label, found)
        rows += found
    return {
        **environment(settings.device),
        "backend": settings.backend or "by device",
        "quick": settings.quick,
        "copy_bytes_per_second": bandwidth,
        "rows": rows,
    }
