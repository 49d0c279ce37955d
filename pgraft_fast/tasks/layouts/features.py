"""The space of Frechet distances between layouts: a transformer that tells real layouts from noised ones and gives
back labels and boxes from one vector.

The idea is that of FIDNetV3 (LayoutGAN++, arXiv 2108.00871, section 4.1); the size, and the weights, are our own: its
distances compare with each other, not with published ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.tasks.layouts.attention import masked_attention
from pgraft_fast.tasks.layouts.conditions import counts_of
from pgraft_fast.tasks.layouts.elements import MAX_ELEMENTS, NO_ELEMENT, Layouts, packed, unpack
from pgraft_fast.tasks.layouts.network import SINES, sines

WIDTH = 64


class LayoutEncoder(nn.Module):
    """Features (n, 64) of layouts: labels (n, N) int64, -1 where there is no element, and boxes (n, N, 4)."""

    def __init__(self, n_labels: int = 5, width: int = WIDTH, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.n_labels = n_labels
        self.embed = nn.Linear(4 + n_labels + SINES, width)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, labels: Tensor, boxes: Tensor) -> Tensor:
        element = labels != NO_ELEMENT
        rows = packed(labels, boxes, self.n_labels)
        hidden = self.embed(torch.cat([rows, sines(rows)], dim=-1))
        hidden = torch.cat([self.token.expand(len(labels), 1, -1), hidden], dim=1)
        mask = F.pad(element, (1, 0), value=True)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.norm(hidden[:, 0])


class LayoutDecoder(nn.Module):
    """What the features are trained by: whether a layout is real, (n,) logits, and its labels (n, N, L) as logits and
    boxes (n, N, 4 columns of `elements.pack`), by the order of slots.
    """

    def __init__(self, n_labels: int = 5, width: int = WIDTH, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.real = nn.Linear(width, 1)
        self.slots = nn.Parameter(0.02 * torch.randn(MAX_ELEMENTS, width))
        self.spread = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_labels + 4)

    def forward(self, features: Tensor, element: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features: (n, width). element: (n, N) bool, N at most 25."""
        hidden = self.spread(features)[:, None] + self.slots[: element.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, element)
        labels, boxes = self.head(self.norm(hidden)).tensor_split([-4], dim=-1)
        return self.real(features).squeeze(-1), labels, boxes


class Layer(nn.Module):
    """A pre-norm transformer layer over the slots (n, N, width) of a mask (n, N) bool."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        x = x + self.out(masked_attention(query, key, value, mask).flatten(-2))
        return x + self.down(F.gelu(self.up(self.between(x))))


def layout_features(encoder: LayoutEncoder, samples: Tensor, condition: Tensor) -> Tensor:
    """(n, 64) float32 of samples (n, N, 4 + L) with their condition (n, N, 6). A box that is not finite counts as 0."""
    labels, boxes = unpack(samples, counts_of(condition))
    return _encoded(encoder, labels, boxes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))


def features_of(encoder: LayoutEncoder, layouts: Layouts) -> Tensor:
    """(n, 64) float32 of layouts as they are."""
    return _encoded(encoder, layouts.labels, layouts.boxes)


def _encoded(encoder: LayoutEncoder, labels: Tensor, boxes: Tensor) -> Tensor:
    with torch.no_grad():
        parts = zip(labels.split(1024), boxes.split(1024), strict=True)
        return torch.cat([encoder(*part) for part in parts]) if len(labels) else boxes.new_zeros(0, WIDTH)
