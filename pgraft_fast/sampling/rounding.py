"""How far two ways to compute the same may be apart: rounding, other orders of rows, no more."""

import math
from typing import Any

import torch
from torch import Tensor

# Root mean squares of differences, as shares of what is compared.
_ALLOWED = {torch.float16: 0.03, torch.bfloat16: 0.1}
_ALLOWED_EXACT, _ALLOWED_TF32 = 1e-4, 5e-3


def allowed_for(dtype: torch.dtype, device: torch.device) -> float:
    """By the rounding of products: float32's are TF32 on CUDA where torch is told so, as it is for convolutions."""
    backends: Any = torch.backends
    set_to = (backends.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision)
    exact = _ALLOWED_TF32 if device.type == "cuda" and "tf32" in set_to else _ALLOWED_EXACT
    return _ALLOWED.get(dtype, exact)


def off(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, as a share of what is expected."""
    size = float(expected.float().square().mean().sqrt())
    far = float((actual.float() - expected.float()).square().mean().sqrt()) / max(size, 1e-12)
    return math.inf if math.isnan(far) else far
