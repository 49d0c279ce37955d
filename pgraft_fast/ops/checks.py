"""What the operations check of their inputs, and the memory layouts that they keep."""

import torch
from torch import Tensor

from pgraft_fast.errors import InputError

STATE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_state(name: str, x: Tensor) -> None:
    """A batch of states: floating, with a first dimension of samples."""
    if x.dtype not in STATE_DTYPES:
        raise InputError(f"{name} has dtype {x.dtype}: float32, float16, bfloat16 or float64 is needed")
    if x.ndim == 0:
        raise InputError(f"{name} is a scalar: (B, ...) is needed")


def check_like(name: str, value: Tensor, x: Tensor) -> None:
    """Of the shape and device of x, and floating."""
    if value.shape == x.shape and value.device == x.device and value.dtype in STATE_DTYPES:
        return
    if value.shape != x.shape:
        raise InputError(f"{name} has shape {tuple(value.shape)}, the state {tuple(x.shape)}: they must agree")
    if value.device != x.device:
        raise InputError(f"{name} is on {value.device}, the state on {x.device}: they must agree")
    raise InputError(f"{name} has dtype {value.dtype}: float32, float16, bfloat16 or float64 is needed")


def check_rows(name: str, value: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    """(B,) of one dtype on the device of x."""
    if value.shape != x.shape[:1] or value.dtype is not dtype or value.device != x.device:
        raise InputError(
            f"{name} is {value.dtype} {tuple(value.shape)} on {value.device}: "
            f"({x.shape[0]},) {dtype} on {x.device} is needed"
        )


def check_no_gradient(op: str, *tensors: Tensor | None) -> None:
    """A result without the gradient that was asked for would be wrong in silence."""
    if not torch.is_grad_enabled():
        return
    for x in tensors:
        if x is not None and x.requires_grad:
            raise InputError(f"{op} has no gradient: call it under torch.no_grad() or detach its inputs")


def layout(x: Tensor) -> torch.memory_format:
    """The dense layout in which a batch is worked on: channels-last where it has that, else C order."""
    if not x.is_contiguous():
        for ndim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.ndim == ndim and x.is_contiguous(memory_format=memory_format):
                return memory_format
    return torch.contiguous_format


def over_samples(value: Tensor, like: Tensor) -> Tensor:
    """(B,) to broadcast over (B, ...)."""
    return value.view(-1, *([1] * (like.ndim - 1)))


def wide(x: Tensor) -> torch.dtype:
    """The dtype in which the reference computes: float32, or float64 for float64."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def flat(x: Tensor) -> Tensor:
    """(B, n) of (B, ...), also of (B,)."""
    return x.unsqueeze(-1).flatten(1)
