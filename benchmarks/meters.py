"""What a GPU can be asked beside its clock: energy, memory, launches. Where it cannot, the answer is None."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# Calls of the CUDA runtime and driver by which a host gives work to the GPU.
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset")


class Energy:
    """The energy counter of a GPU, by NVML. Nothing is set there."""

    def __init__(self, nvml: Any = None, handle: Any = None) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, device: torch.device) -> "Energy":
        """The counter of a device; one that answers None where there is no GPU, no NVML or no such counter."""
        if device.type != "cuda":
            return cls()
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            meter = cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except Exception:
            # NVML's errors are classes made at run time.
            return cls()
        return cls() if meter.joules() is None else meter

    def joules(self) -> float | None:
        """Since the driver was loaded."""
        if self._nvml is None:
            return None
        try:
            return 1e-3 * float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError:
            return None


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
    memory.megabytes = round((torch.cuda.max_memory_reserved(device) - before + weights) / 1e6, 1)


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
