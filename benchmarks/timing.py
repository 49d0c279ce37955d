"""Clocks of the benchmarks, one for each kind of device, and the order statistics of their readings."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Run = Callable[[], Any]


class Timer(Protocol):
    """A clock. `repeats` warms up and tells how many calls one reading needs; `read` gives seconds a call."""

    def repeats(self, run: Run) -> int: ...

    def read(self, run: Run, calls: int) -> float: ...


class CpuTimer:
    """Wall clock. One reading lasts at least `at_least` seconds: short calls are read many at once."""

    def __init__(self, at_least: float = 5e-3) -> None:
        self.at_least = at_least

    def repeats(self, run: Run) -> int:
        run()
        calls = 1
        while True:
            spent = self.read(run, calls) * calls
            if spent >= self.at_least:
                return calls
            calls = max(2 * calls, math.ceil(1.2 * calls * self.at_least / max(spent, 1e-7)))

    def read(self, run: Run, calls: int) -> float:
        began = time.perf_counter_ns()
        for _ in range(calls):
            run()
        return (time.perf_counter_ns() - began) * 1e-9 / calls


class CudaTimer:
    """CUDA events. Before each reading a buffer of four times the L2 cache is written, so that the cache is cold."""

    def __init__(self, device: torch.device) -> None:
        size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self._larger_than_l2 = torch.empty(size, dtype=torch.uint8, device=device)
        self._began, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def repeats(self, run: Run) -> int:
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        return 1

    def read(self, run: Run, calls: int) -> float:
        self._larger_than_l2.zero_()
        self._began.record()
        for _ in range(calls):
            run()
        self._ended.record()
        self._ended.synchronize()
        return self._began.elapsed_time(self._ended) * 1e-3 / calls


def timer_of(device: torch.device, size: str) -> Timer:
    """The clock of a device."""
    return CudaTimer(device) if device.type == "cuda" else CpuTimer({"full": 5e-3, "quick": 2e-3, "smoke": 2e-5}[size])


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the sorted values; share 0.5 is the median. NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def launches(run: Run) -> int:
    """Kernels, copies and fills that one call starts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or [])
