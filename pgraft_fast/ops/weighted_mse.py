"""Weighted squared error, one value a sample, forward and backward in one pass each.

    loss_b = mean_i (w_b out_bi - target_bi)^2,    d loss_b / d out_bi = 2 w_b / n (w_b out_bi - target_bi)

w is the square root of the usual weight, already applied to the target (see `partial_noise`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgraft_fast.errors import InputError
from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.checks import check_like, check_rows, check_state, flat, over_samples, wide
from pgraft_fast.ops.registration import register, traced


def weighted_mse(out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """(B,) float32 (float64 for float64) errors. out, target: (B, ...), any floating dtypes. weight: (B,) float32.

    Differentiable in `out`, once; target and weight are constants and raise InputError where they require a gradient.
    The gradient has the dtype of `out`. An empty sample has error 0 by convention.
    """
    check_state("out", out)
    check_like("target", target, out)
    check_rows("weight", weight, out, wide(out))
    if torch.is_grad_enabled():
        if target.requires_grad or weight.requires_grad:
            raise InputError("weighted_mse differentiates out alone: detach target and weight")
        if out.requires_grad:
            return _WeightedMse.apply(out, target, weight)
    return (_op if traced(out, target) else _run)(out, target, weight)


class _WeightedMse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(out, target, weight)
        return (_op if traced(out, target) else _run)(out, target, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out, target, weight = ctx.saved_tensors
        return (_grad_op if traced(grad, out) else _run_grad)(out, target, weight, grad), None, None


def _run(out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    launch = launcher("weighted_mse", out)
    if launch is None or out.numel() == 0:
        dtype = wide(out)
        error = over_samples(weight, out) * out.to(dtype) - target.to(dtype)
        return flat(error).square().sum(dim=1) / max(1, out[:1].numel())
    loss = torch.empty_like(weight)
    launch(out.contiguous(), _narrow(target), weight.contiguous(), loss)
    return loss


def _run_grad(out: Tensor, target: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    launch = launcher("weighted_mse_grad", out)
    if launch is None:
        dtype = wide(out)
        scale = 2.0 * weight * grad / max(1, out[:1].numel())
        error = over_samples(weight, out) * out.to(dtype) - target.to(dtype)
        return (over_samples(scale, out) * error).to(out.dtype).contiguous()
    out = out.contiguous()
    grad_out = torch.empty_like(out, memory_format=torch.contiguous_format)
    launch(out, _narrow(target), weight.contiguous(), grad.contiguous(), grad_out)
    return grad_out


def _narrow(target: Tensor) -> Tensor:
    return (target.float() if target.dtype is torch.float64 else target).contiguous()


_op = register(
    "weighted_mse(Tensor out, Tensor target, Tensor weight) -> Tensor",
    _run,
    lambda out, target, weight: torch.empty_like(weight, memory_format=torch.contiguous_format),
)
_grad_op = register(
    "weighted_mse_grad(Tensor out, Tensor target, Tensor weight, Tensor grad) -> Tensor",
    _run_grad,
    lambda out, target, weight, grad: out.new_empty(out.shape),
)
