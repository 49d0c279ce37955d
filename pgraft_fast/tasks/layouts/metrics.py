"""What a layout is measured by alone: alignment, overlap, inside.

labels: (B, N) int64, -1 where there is no element. boxes: (B, N, 4), see `elements`. Results are (B,) float64, nan
where a box is not finite. What stands where there is no element is not read and gets no gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pgraft_fast.tasks.layouts.elements import NO_ELEMENT, ltrb_from_cxcywh

# Share of the page: what is over its edge by no more is within it.
INSIDE_TOLERANCE = 1e-3
# -log(1 - distance) has no value from 1 on, where boxes are far off the page.
_FARTHEST = 1.0 - 1e-6
# Of elements, at a time.
PAIRS = 2**20


def alignment(labels: Tensor, boxes: Tensor) -> Tensor:
    """x100, lower is better: 100 / n sum_i -log(1 - min_{j != i, line} |line_i - line_j|).

    line: left, centre x, right, top, centre y, bottom, in shares of the page. 0 for fewer than two elements.
    Source: LayoutGAN++, arXiv 2108.00871, after Attribute-conditioned Layout GAN, arXiv 2009.05284, section 3.6.4.
    """
    return _by_chunks(_alignment, labels, boxes)


def overlap(labels: Tensor, boxes: Tensor) -> Tensor:
    """Not x100, lower is better: 1 / n sum_{i != j} area(i and j) / area(i), where area(i) > 0.

    0 for fewer than two elements. Up to n - 1, where all are in one place. This is the scale of LayoutDM, arXiv
    2303.08137; papers that print 100 times it do not always say so.
    """
    return _by_chunks(_overlap, labels, boxes)


def inside(labels: Tensor, boxes: Tensor) -> Tensor:
    """Share of elements, in [0, 1], that lie within the page to 0.001 of its size; nan for no element."""
    element, points = elements_of(labels, boxes)
    within = (protrusion(points) <= INSIDE_TOLERANCE) & element
    share = within.sum(dim=1).to(torch.float64) / element.sum(dim=1)
    return share.where(points.isfinite().flatten(1).all(dim=1), torch.nan)


def protrusion(boxes: Tensor) -> Tensor:
    """(...,) how far a box reaches over an edge of the page at most, share of the page, 0 within it."""
    edges = ltrb_from_cxcywh(boxes)
    return torch.maximum(-edges.amin(dim=-1), edges.amax(dim=-1) - 1.0).clamp(min=0.0)


def elements_of(labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Which are elements, (B, N) bool, and boxes in float64, 0 where there is none."""
    element = labels != NO_ELEMENT
    return element, boxes.to(torch.float64).where(element[:, :, None], 0.0)


def areas(boxes: Tensor) -> Tensor:
    """(...,) share of the page; 0 where a side is negative."""
    return boxes[..., 2].clamp(min=0.0) * boxes[..., 3].clamp(min=0.0)


def intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """(..., N, M) areas that boxes (..., N, 4) and others (..., M, 4) share."""
    first, second = ltrb_from_cxcywh(boxes)[..., :, None, :], ltrb_from_cxcywh(others)[..., None, :, :]
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    return (high - low).clamp(min=0.0).prod(dim=-1)


def _by_chunks(measure: Callable[[Tensor, Tensor], Tensor], labels: Tensor, boxes: Tensor) -> Tensor:
    rows = max(1, PAIRS // max(1, labels.shape[1] ** 2))
    chunks = zip(labels.split(rows), boxes.split(rows), strict=True)
    return torch.cat([_finite_alone(measure, *elements_of(part, places)) for part, places in chunks])


def _finite_alone(measure: Callable[[Tensor, Tensor], Tensor], element: Tensor, boxes: Tensor) -> Tensor:
    """(B,) nan where a box is not finite, without a nan in the gradient of the others."""
    finite = boxes.isfinite().flatten(1).all(dim=1)
    return measure(element, boxes.where(finite[:, None, None], 0.0)).where(finite, torch.nan)


def _pairs(element: Tensor) -> Tensor:
    """(B, N, N) bool, of two different elements."""
    other = ~torch.eye(element.shape[1], dtype=torch.bool, device=element.device)
    return element[:, :, None] & element[:, None, :] & other


def _alignment(element: Tensor, boxes: Tensor) -> Tensor:
    half = boxes[..., 2:] / 2
    centre = boxes[..., :2]
    pairs = _pairs(element)
    nearest = torch.full_like(boxes[..., 0], _FARTHEST)
    for lines in (centre - half, centre, centre + half):
        for axis in (0, 1):
            line = lines[..., axis]
            distance = (line[:, :, None] - line[:, None, :]).abs().where(pairs, _FARTHEST)
            nearest = torch.minimum(nearest, distance.amin(dim=2)) if distance.numel() else nearest
    cost = -torch.log1p(-nearest).where(pairs.any(dim=2), 0.0)
    return 100.0 * cost.sum(dim=1) / element.sum(dim=1).clamp(min=1)


def _overlap(element: Tensor, boxes: Tensor) -> Tensor:
    area = areas(boxes)[:, :, None]
    shared = intersections(boxes, boxes).where(_pairs(element), 0.0)
    # Without an area, nothing is shared either.
    share = shared / area.where(area > 0, 1.0)
    return share.sum(dim=(1, 2)) / element.sum(dim=1).clamp(min=1)
