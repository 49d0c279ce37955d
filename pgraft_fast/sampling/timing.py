"""The clock of work on a device: what is still under way there counts."""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
_RUNS = 3


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, the device's work included."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def median_time(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Median seconds of three calls after a first one, and the last result."""
    result = work()

    def again() -> None:
        nonlocal result
        result = work()

    return statistics.median(timed(again, device) for _ in range(_RUNS)), result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
