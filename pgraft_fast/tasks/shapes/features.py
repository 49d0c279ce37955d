"""The feature space of the distances: a small network that was trained to say what is where in a picture."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.tasks.shapes.geometry import COLOURS, SHAPES, SIDE
from pgraft_fast.tasks.shapes.pipeline import WEIGHTS, load_part
from pgraft_fast.tasks.shapes.render import Blob

N_FEATURES = 48
# Each pair of shape and colour, each cell of a 3 x 3 grid, and one to four objects.
_CELLS = 3
N_FACTS = len(SHAPES) * len(COLOURS) + _CELLS**2 + 4


class FactsNetwork(nn.Module):
    """logits (B, 37) of the facts of pictures (B, 3, 32, 32) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, 24, 3, padding=1, stride=2)
        self.conv_2 = nn.Conv2d(24, 48, 3, padding=1, stride=2)
        self.conv_3 = nn.Conv2d(48, 64, 3, padding=1, stride=2)
        self.hidden = nn.Linear(64 * (SIDE // 8) ** 2, N_FEATURES)
        self.head = nn.Linear(N_FEATURES, N_FACTS)

    def features(self, x: Tensor) -> Tensor:
        """(B, 48): the layer below the logits, before its non-linearity."""
        for conv in (self.conv_1, self.conv_2, self.conv_3):
            x = F.gelu(conv(x))
        return self.hidden(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.features(x)))


def facts(scenes: Sequence[Sequence[Blob]]) -> Tensor:
    """(B, 37) float32 of 0 and 1: which coloured shapes there are, which cells hold an object, how many there are."""
    labels = torch.zeros(len(scenes), N_FACTS)
    names, pairs = tuple(COLOURS), len(SHAPES) * len(COLOURS)
    for i, blobs in enumerate(scenes):
        for blob in blobs:
            labels[i, SHAPES.index(blob.shape) * len(COLOURS) + names.index(blob.colour)] = 1.0
            cell = int(blob.y * _CELLS / SIDE) * _CELLS + int(blob.x * _CELLS / SIDE)
            labels[i, pairs + cell] = 1.0
        if 1 <= len(blobs) <= 4:
            labels[i, pairs + _CELLS**2 + len(blobs) - 1] = 1.0
    return labels


def features(samples: Tensor, folder: Path | None = None) -> Tensor:
    """(B, 48) float32 of pictures (B, 3, 32, 32) in [-1, 1], on their device.

    folder: made by `train-base`, in place of the shipped weights. Raises CheckpointError.
    """
    network = _network(WEIGHTS if folder is None else folder, str(samples.device))
    with torch.no_grad():
        parts = [network.features(part.float().clamp(-1.0, 1.0)) for part in samples.split(1024)]
    return torch.cat(parts) if parts else samples.new_zeros(0, N_FEATURES)


@lru_cache(maxsize=4)
def _network(folder: Path, device: str) -> FactsNetwork:
    network = FactsNetwork()
    load_part(network, folder / "features.safetensors")
    return network.requires_grad_(False).eval().to(device)
