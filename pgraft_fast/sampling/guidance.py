"""Classifier-free guidance as a model of its own."""

import torch
from torch import Tensor

from pgraft_fast.sampling.rollout import Model


def guided(model: Model, scale: float, null_condition: Tensor) -> Model:
    """out = out_null + scale (out_condition - out_null) (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    null_condition: one row, shape of a single condition. One network call on 2 B rows; scale 1 costs one on B.
    """
    if scale == 1.0:
        return model

    def call(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        null = null_condition.to(condition).expand_as(condition)
        both = model(torch.cat((x, x)), torch.cat((t, t)), torch.cat((condition, null)))
        out, out_null = both.chunk(2)
        return out_null + scale * (out - out_null)

    return call
