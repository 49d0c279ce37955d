"""One fixed-point iteration of an implicit Euler inverse, with its residual, in one pass.

y' = x - h v(y),    residual_b = | y'_b - y_b |_2
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.checks import check_like, check_no_gradient, check_state, flat, wide
from pgraft_fast.ops.registration import register, traced


class FixedPoint(NamedTuple):
    """y: shape and dtype of x. residual: (B,) float32 (float64 for float64)."""

    y: Tensor
    residual: Tensor


def fixed_point_update(x: Tensor, v: Tensor, y: Tensor, h: float) -> FixedPoint:
    """x, y: (B, ...) of one dtype. v: the velocity at y, any floating dtype. h: the step's length in time.

    Arithmetic is float32 (float64 for float64); the residual is of the values before they are rounded to the dtype
    of x. Raises InputError.
    """
    check_state("x", x)
    check_no_gradient("fixed_point_update", x, v, y)
    check_like("v", v, x)
    check_like("y", y, x)
    return FixedPoint(*(_op if traced(x, v, y) else _run)(x, v, y, h))


def _run(x: Tensor, v: Tensor, y: Tensor, h: float) -> tuple[Tensor, Tensor]:
    launch = launcher("fixed_point_update", x)
    if launch is None:
        dtype = wide(x)
        following = x.to(dtype) - h * v.to(dtype)
        residual = flat(following - y.to(dtype)).square().sum(dim=1).sqrt()
        return following.to(x.dtype).contiguous(), residual
    x, y = x.contiguous(), y.to(x.dtype).contiguous()
    v = (v.float() if v.dtype is torch.float64 else v).contiguous()
    following, residual = torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)
    launch(x, v, y, h, following, residual)
    return following, residual


_op = register(
    "fixed_point_update(Tensor x, Tensor v, Tensor y, float h) -> (Tensor, Tensor)",
    _run,
    lambda x, v, y, h: (x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=wide(x))),
)
