"""The device that a config names."""

import torch

from pgraft_fast.errors import InputError


def device_of(name: str) -> torch.device:
    """auto is the first GPU, or else the CPU. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} cannot be used ({str(error).splitlines()[0]}); set device='auto'") from error
