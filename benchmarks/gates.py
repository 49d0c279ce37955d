"""Gates: what is wrong with a result, in a few words, or None."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.ops import use_backend

Work = Callable[..., Sequence[Tensor]]
Inputs = dict[str, Tensor]

# Of the largest value, for results that round in another order than the reference.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def reference(work: Work, inputs: Inputs, double: bool = False, **more: Any) -> Sequence[Tensor]:
    """work(**inputs) by the reference; double: in float64."""
    if double:
        inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    with use_backend("reference"):
        return work(**inputs, **more)


def held(got: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]) -> str | None:
    """max|k - x| <= 2 max|e - x| + 2 eps max|x|, and rms(k - x) <= 1.2 rms(e - x) + 0.1 eps rms(x)."""
    for index, (value, other, truth) in enumerate(zip(got, eager, exact, strict=True)):
        eps = torch.finfo(value.dtype).eps
        k, e, x = value.double() - truth, other.double() - truth, truth.double()
        if not _largest(k) <= 2 * _largest(e) + 2 * eps * _largest(x):
            return f"output {index}: error {_largest(k):.2e}, the reference's is {_largest(e):.2e}"
        if not _rms(k) <= 1.2 * _rms(e) + 0.1 * eps * _rms(x):
            return f"output {index}: rms error {_rms(k):.2e}, the reference's is {_rms(e):.2e}"
    return None


def near(got: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float | None = None) -> str | None:
    """max|k - x| <= tolerance max|x|; the default is that of the dtype."""
    for index, (value, truth) in enumerate(zip(got, exact, strict=True)):
        allowed = TOLERANCE[value.dtype] if tolerance is None else tolerance
        error = _largest(value.double() - truth.double())
        if not error <= allowed * _largest(truth.double()):
            return f"output {index}: error {error:.2e}, largest value {_largest(truth.double()):.2e}"
    return None


def same(got: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """Equal, bit for bit."""
    for index, (value, other) in enumerate(zip(got, expected, strict=True)):
        if value.dtype is not other.dtype or not torch.equal(value, other):
            return f"output {index} differs"
    return None


def standard_normal(z: Tensor) -> str | None:
    """Mean, variance and fourth moment within six standard errors, and a rounding step of a narrow dtype."""
    eps = torch.finfo(z.dtype).eps
    z = z.double()
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)):
        off = abs(float((z**power).mean()) - moment)
        if not off <= 6 * math.sqrt(variance / z.numel()) + eps:
            return f"moment {power} is {off:.2e} off"
    return None


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
