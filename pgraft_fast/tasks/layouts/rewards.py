"""Rewards of layouts: (samples, condition) -> (B,) float32, higher is better.

samples: (B, N, 4 + L), see `elements.pack`. condition: (B,) numbers of elements. Rows after these are not read. A
sample with a number that is not finite has the lowest value: LOWEST, and 0 of `inside`.
"""

import torch
from torch import Tensor

from pgraft_fast.tasks.layouts import metrics
from pgraft_fast.tasks.layouts.elements import unpack

LOWEST = -100.0
# Of `tidy`, shares of the page. Shorter sides are no element of a page: 6 points of A4's width, 4 of its height.
LEAST_WIDTH, LEAST_HEIGHT = 0.01, 0.005
# Less is small: a word, not a line. More is the page itself.
LEAST_AREA, MOST_AREA = 0.002, 0.9
# What overlaps count beside the alignment x100.
OVERLAP = 3.0
# All elements together, each and at most.
LEAST_COVER, MOST_LEAST_COVER = 0.02, 0.2


def alignment(samples: Tensor, condition: Tensor) -> Tensor:
    """Minus the metric, x100, in [-100, 0]. Boxes in one place win it: see `tidy`."""
    return _bounded(-metrics.alignment(*unpack(samples, condition)))


def overlap(samples: Tensor, condition: Tensor) -> Tensor:
    """Minus the metric, not x100, in [-100, 0]. Boxes of no area, or off the page, win it: see `tidy`."""
    return _bounded(-metrics.overlap(*unpack(samples, condition)))


def inside(samples: Tensor, condition: Tensor) -> Tensor:
    """Share of the elements that lie within the page, in [0, 1]; 0 for no element."""
    return metrics.inside(*unpack(samples, condition)).nan_to_num(nan=0.0).to(torch.float32)


def tidy(samples: Tensor, condition: Tensor) -> Tensor:
    """Minus (alignment x100 + 3 (overlap + 2 flaws) + small + bare), in [-100, 0].

    With the 3, alignment and overlap count about alike among a model's samples.

    flaws: sum over elements of 1 if it is not within the page or has an area over 0.9, else of what it lacks of the
    sides 0.01 x 0.005, as a share. Twice that is more than an element's overlaps with others can cost, so that none is
    better off the page, or a point. small: mean of what elements lack of an area of 0.002. bare: what all areas lack of
    min(0.2, 0.02 n). Both are shares: 0 for a page of ordinary elements. Boxes in one place pay by their overlap.
    Labels are not read: where a label lies on others by its nature, as RICO's Card does, take `alignment`.
    """
    labels, boxes = unpack(samples, condition)
    element, places = metrics.elements_of(labels, boxes)
    n = element.sum(dim=1).clamp(min=1)
    area = metrics.areas(places)
    width, height = places[..., 2].clamp(min=0.0), places[..., 3].clamp(min=0.0)
    lacking = 1.0 - torch.minimum(width / LEAST_WIDTH, height / LEAST_HEIGHT).clamp(max=1.0)
    wrong = (metrics.protrusion(places) > metrics.INSIDE_TOLERANCE) | (area > MOST_AREA)
    flaws = lacking.masked_fill(wrong, 1.0).where(element, 0.0).sum(dim=1)
    small = (1.0 - (area / LEAST_AREA).clamp(max=1.0)).where(element, 0.0).sum(dim=1) / n
    least = (LEAST_COVER * n).clamp(max=MOST_LEAST_COVER)
    bare = 1.0 - (area.sum(dim=1) / least).clamp(max=1.0)
    cost = metrics.alignment(labels, boxes) + OVERLAP * (metrics.overlap(labels, boxes) + 2.0 * flaws) + small + bare
    return _bounded(-cost)


def _bounded(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=LOWEST).clamp(min=LOWEST, max=0.0).to(torch.float32)
