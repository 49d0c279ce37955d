"""Joules of a GPU, as its driver counts them."""

from typing import Any

import torch

from pgraft_fast.errors import InputError


class Energy:
    """energy() -> joules of the whole device since this was made, whoever used it. Volta and newer.

    Raises InputError where the driver cannot be asked.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise InputError(
                f"energy is known of NVIDIA GPUs, not of {device}: limit gpu_hours or wall_seconds instead"
            )
        try:
            import pynvml
        except ImportError as error:
            raise InputError(f"energy needs nvidia-ml-py ({error}): pip install nvidia-ml-py") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            name = str(torch.cuda.get_device_properties(device).uuid)
            name = name if name.startswith("GPU-") else f"GPU-{name}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(name.encode())
            self._first = self._read()
        except pynvml.NVMLError as error:
            raise InputError(f"energy: the driver does not tell ({error})") from error

    @classmethod
    def of(cls, device: torch.device) -> "Energy | None":
        """None where it cannot be known."""
        try:
            return cls(device)
        except InputError:
            return None

    def __call__(self) -> float:
        return self._read() - self._first

    def _read(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000.0
