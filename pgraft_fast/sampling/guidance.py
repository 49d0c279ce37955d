"""Classifier-free guidance: a model's two answers, put together inside the fused step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# model(x, t) or model(x, t, condition)
Model = Callable[..., Any]


class Guide(NamedTuple):
    """g = out_null + scale (out - out_null) (Ho and Salimans 2022, arXiv 2207.12598, eq. 6). rescale: share of g that
    is brought to the standard deviation of each sample's out (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16).
    """

    out_null: Tensor
    scale: float
    rescale: float = 0.0

    def combine(self, out: Tensor) -> Tensor:
        """g in plain torch, where it is needed as a tensor."""
        guided = self.out_null + self.scale * (out - self.out_null)
        if self.rescale == 0.0:
            return guided
        over = list(range(1, out.ndim))
        factor = out.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
        return self.rescale * (guided * factor) + (1.0 - self.rescale) * guided


class Guided(NamedTuple):
    """A model's answers with and without its condition, shape of the state each; scale: of the guidance."""

    out: Tensor
    out_null: Tensor
    scale: float

    def combined(self) -> Tensor:
        """See `Guide.combine`."""
        return Guide(self.out_null, self.scale).combine(self.out)


class _WithGuidance:
    """See `guided`."""

    calls_a_sample = 2

    def __init__(self, model: Model, scale: float, null_condition: Tensor) -> None:
        self.model, self._scale, self._null = model, scale, null_condition
        self.thread_safe = getattr(model, "thread_safe", False)

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Guided:
        # Kept where it is asked for: a CUDA graph must not copy it from the host.
        self._null = self._null.to(condition)
        null = self._null.expand_as(condition)
        both = self.model(torch.cat((x, x)), torch.cat((t, t)), torch.cat((condition, null)))
        out, out_null = both.chunk(2)
        return Guided(out, out_null, self._scale)


def guided(model: Model, scale: float, null_condition: Tensor) -> Model:
    """The model with guidance: it returns `Guided` from one network call on 2 B rows; scale 1 is the model itself.

    null_condition: one row, shape of a single condition.
    """
    return model if scale == 1.0 else _WithGuidance(model, scale, null_condition)


def calls_of(model: Model) -> int:
    """Forward passes that one call of a model costs a sample: 2 with guidance."""
    return int(getattr(model, "calls_a_sample", 1))
