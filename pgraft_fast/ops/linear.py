"""Linear layers through oneDNN, on processors for which torch's own product is slow.

On x86 torch multiplies float32 matrices with MKL, which keeps its fast kernels to processors of its maker: on an AMD
EPYC with AVX-512 oneDNN, which torch carries as well, takes half the time for the layers of a small transformer.

    y = x W^T + b
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgraft_fast.ops.registration import register, traced


@functools.cache
def onednn_pays() -> bool:
    """Whether `linear` is worth its place on this machine's CPU: by its maker, so that the answer never changes."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkl.is_available():
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "vendor_id" in text and "GenuineIntel" not in text


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: (..., n), weight: (m, n), bias: (m,) or None -> (..., m). As torch.nn.functional.linear, to rounding.

    Differentiable once in each of them. What oneDNN is not faster at (other dtypes than float32, other devices) is
    torch's own.
    """
    plain = x.is_cpu and x.dtype is weight.dtype is torch.float32 and x.ndim > 1 and x.numel() > 0
    if not plain or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    needs_gradient = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and needs_gradient:
        return _Linear.apply(x, weight, bias)
    return (_op if traced(x, weight) else _run)(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return (_op if traced(x, weight) else _run)(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (_op if traced(grad, weight) else _run)(grad, weight.t().contiguous(), None)
        if ctx.needs_input_grad[1]:
            # A long sum over the rows, for which oneDNN would need both turned over first.
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.biased and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0)
        return grad_x, grad_weight, grad_bias


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


_op = register(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    _run,
    lambda x, weight, bias: x.new_empty((*x.shape[:-1], weight.shape[0])),
)
