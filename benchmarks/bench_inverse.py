"""The operations of an implicit inverse: a fixed-point iteration with its residual, and Anderson mixing."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.ops import anderson_mix, fixed_point_update
from pgraft_fast_benchmarks.harness import Case, Provider, Settings
from pgraft_fast_benchmarks.providers import copy, draw, eager, ours

_HISTORY = 4


def cases(settings: Settings) -> Iterator[Case]:
    """One batch of 16 latents."""
    shape = (2, 4, 8, 8) if settings.small else (16, 4, 64, 64)
    tensor_bytes = 4 * torch.Size(shape).numel()
    yield Case("fixed_point_update", "step", shape, "float32", 4 * tensor_bytes, partial(_fixed_point_update, shape))
    # The iterates and the residuals once each, and the mixture.
    yield Case(
        "anderson_mix", f"history {_HISTORY}", shape, "float32", (2 * _HISTORY + 1) * tensor_bytes,
        partial(_anderson_mix, shape),
    )  # fmt: skip


def _fixed_point_update(shape: tuple[int, ...], settings: Settings) -> Sequence[Provider]:
    inputs = dict(zip(("x", "v", "y"), draw(shape, settings, 3), strict=True))

    def work(x: Tensor, v: Tensor, y: Tensor) -> list[Tensor]:
        return list(fixed_point_update(x, v, y, 0.02))

    return [ours(work, inputs, settings), eager(work, inputs), copy(inputs["x"])]


def _anderson_mix(shape: tuple[int, ...], settings: Settings) -> Sequence[Provider]:
    following, residual = draw((_HISTORY, *shape), settings, 2)
    inputs = {"following": following, "residual": residual}

    def work(following: Tensor, residual: Tensor) -> list[Tensor]:
        return [anderson_mix(following, residual)]

    return [ours(work, inputs, settings), eager(work, inputs), copy(following[0])]
