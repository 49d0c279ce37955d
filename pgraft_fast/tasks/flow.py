"""What inverse noise correction works on: data with their law, features, pictures, and the base flow's network."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgraft_fast.inverse_noise import Source


@dataclass(frozen=True)
class FlowTask:
    """source: the training data, perturbed anew in each step. draw(index, seed) -> (B, *shape): perturbed data by their
    numbers, the same each time. base: a trained flow, or None, then one of `network` is trained. features(x) -> (n, d),
    feature_name tells which. pictures(x) -> (n, H, W) or (n, H, W, 3) uint8. data: (m, *shape) unperturbed training
    data for the nearest neighbours, or None where there are too many. identity: JSON that names this very data.
    """

    name: str
    shape: tuple[int, ...]
    source: Source
    draw: Callable[[Tensor, int], Tensor]
    network: dict[str, Any]
    base: nn.Module | None
    features: Callable[[Tensor], Tensor]
    feature_name: str
    pictures: Callable[[Tensor], np.ndarray]
    data: Tensor | None
    identity: dict[str, object]

    @property
    def data_size(self) -> int:
        """Numbers of a sample."""
        return math.prod(self.shape)

    def features_of(self, x: Tensor, batch_size: int = 500) -> Tensor:
        """(n, d) in batches."""
        with torch.no_grad():
            return torch.cat([self.features(part).flatten(1).cpu() for part in x.split(batch_size)])
