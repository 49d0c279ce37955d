"""What a GPU can be asked beside its clock: energy, memory, launches. Where it cannot, the answer is None."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pgraft_fast.sizes import MB
from pgraft_fast_benchmarks.timing import launches, percentile

# Calls of the CUDA runtime and driver by which a host gives work to the GPU.
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset")


class Board:
    """What NVML tells of a GPU. Nothing is set there."""

    def __init__(self, nvml: Any = None, handle: Any = None) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, device: torch.device) -> "Board":
        """The GPU's; one that answers None where there is no GPU or no NVML."""
        if device.type != "cuda":
            return cls()
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except Exception:
            # NVML's errors are classes made at run time.
            return cls()

    def joules(self) -> float | None:
        """By the energy counter, since the driver was loaded."""
        value = self._ask(lambda nvml: nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if value is None else 1e-3 * float(value)

    def clocks(self) -> dict[str, float | None]:
        """Of the multiprocessors and the memory, in MHz, at this moment."""
        return {
            "sm_mhz": self._ask(lambda nvml: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)),
            "memory_mhz": self._ask(lambda nvml: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_MEM)),
        }

    def driver(self) -> str | None:
        """Its version."""
        value = self._ask(lambda nvml: nvml.nvmlSystemGetDriverVersion())
        return value.decode() if isinstance(value, bytes) else value

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        if self._nvml is None:
            return None
        try:
            return question(self._nvml)
        except self._nvml.NVMLError:
            return None


def op_columns(
    run: Callable[[], object], steps: int, device: torch.device, board: Board, energy_seconds: float,
    reset: Callable[[], object] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """What an operation asks of a GPU, a step: host_ms until it returns, launches, peak memory beside its inputs, and
    energy and clocks over `energy_seconds` of it, since the meter moves in steps of some 0.1 s. reset: done before each
    run but those of the meter.
    """
    host = []
    for _ in range(5):
        reset()
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        host.append(time.perf_counter() - began)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    reset()
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    reset()
    return {
        "launches": launches(run) / steps, "host_ms": round(1e3 * percentile(host, 0.5) / steps, 6),
        "peak_memory_mb": round(peak / MB, 3), **_energy(run, steps, device, board, energy_seconds),
    }  # fmt: skip


def _energy(
    run: Callable[[], object], steps: int, device: torch.device, board: Board, seconds: float
) -> dict[str, Any]:
    if seconds <= 0.0 or board.joules() is None:
        return {}
    torch.cuda.synchronize(device)
    start, began, calls = board.joules(), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            run()
        calls += 10
        torch.cuda.synchronize(device)
    clocks, end = board.clocks(), board.joules()
    spent = None if start is None or end is None else float(f"{(end - start) / calls / steps:.6g}")
    return {"energy_j": spent, **clocks}


@dataclass
class Memory:
    """megabytes: of the weights, and of what torch reserved beside what was there before; None without a GPU."""

    device: torch.device
    megabytes: float | None = None

    def warm(self) -> None:
        """From here on: what came before was tried out once and is not needed again."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


@contextmanager
def peak_memory(pipe: Any, device: torch.device) -> Iterator[Memory]:
    """Of what runs inside, after `Memory.warm`. Reserved memory counts what graphs keep for themselves."""
    memory = Memory(device)
    if device.type != "cuda":
        yield memory
        return
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    yield memory
    torch.cuda.synchronize(device)
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(x.nbytes for module in modules for x in (*module.parameters(), *module.buffers()))
    memory.megabytes = round((torch.cuda.max_memory_reserved(device) - before + weights) / MB, 1)


def launches_of(run: Callable[[], object], images: int) -> float | None:
    """Times that the host gives work to the GPU in one call, for an image; a graph is one."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
        count = sum(event.name.startswith(_LAUNCHES) for event in profile.events() or [])
    except RuntimeError:
        return None
    return round(count / images, 3) if count else None
