"""Layouts made by hand, and drawn ones, for tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgraft_fast.tasks.layouts.elements import NO_ELEMENT, cxcywh_from_ltrb

# Left, top, right, bottom: a title over two columns of text, a figure in the second; nothing overlaps, edges agree.
TIDY = (
    (0.1, 0.05, 0.9, 0.1),
    (0.1, 0.15, 0.48, 0.5),
    (0.1, 0.55, 0.48, 0.9),
    (0.52, 0.15, 0.9, 0.5),
    (0.52, 0.55, 0.9, 0.9),
)
TIDY_LABELS = (1, 0, 0, 0, 4)


def page(edges: Sequence[Sequence[float]], labels: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Labels (1, N), all text where none are given, and boxes (1, N, 4) float64 of edges left, top, right, bottom."""
    boxes = cxcywh_from_ltrb(torch.tensor(edges, dtype=torch.float64).view(-1, 4))
    return torch.tensor(labels or [0] * len(edges), dtype=torch.int64)[None], boxes[None]


def drawn(n: int = 50, n_labels: int = 5, n_max: int = 25, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (n, n_max), boxes (n, n_max, 4) float32, nan where there is no element, and counts from 1 to n_max."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(1, n_max + 1, (n,), generator=generator)
    element = torch.arange(n_max) < count[:, None]
    labels = torch.randint(n_labels, (n, n_max), generator=generator).where(element, NO_ELEMENT)
    boxes = torch.rand(n, n_max, 4, generator=generator).where(element[:, :, None], torch.nan)
    return labels, boxes, count


def shuffled(labels: Tensor, boxes: Tensor, count: Tensor, seed: int = 2) -> tuple[Tensor, Tensor]:
    """The same layouts, their elements in another order."""
    generator = torch.Generator().manual_seed(seed)
    labels, boxes = labels.clone(), boxes.clone()
    for row, size in enumerate(count.tolist()):
        order = torch.randperm(size, generator=generator)
        labels[row, :size], boxes[row, :size] = labels[row, order], boxes[row, order]
    return labels, boxes
