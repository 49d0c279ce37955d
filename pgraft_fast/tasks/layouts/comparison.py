"""What layouts are measured by beside a reference set: maxIoU and DocSim, and all figures of a set together."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.elements import NO_ELEMENT
from pgraft_fast.tasks.layouts.metrics import PAIRS, alignment, areas, inside, intersections, overlap

# Layouts that differ by this many elements or more have a DocSim of 0, as in LayoutDM.
DOCSIM_DIFFERENCE = 3


@dataclass(frozen=True)
class LayoutMetrics:
    """Means over layouts whose numbers are all finite; nan where there is nothing to take the mean of.

    finite: share of such layouts. alignment: x100. overlap: not x100. inside: share of elements. max_iou: in [0, 1],
    of pairs whose multisets of labels both sets have; matched: such pairs as a share of the samples. docsim: of each
    sample with the reference layout of the same row, nan where the sets differ in size.
    """

    finite: float
    alignment: float
    overlap: float
    inside: float
    max_iou: float
    matched: float
    docsim: float


def measure(labels: Tensor, boxes: Tensor, data_labels: Tensor, data_boxes: Tensor) -> LayoutMetrics:
    """All figures of layouts beside a reference set; for the set's own row, pass one half of it beside the other.

    labels: (B, N) int64, -1 where there is no element. boxes: (B, N, 4), see `elements`. data_labels, data_boxes: of
    the reference set, as those.
    """
    finite = _finite(labels, boxes)
    kept, places = labels[finite], boxes[finite]
    scores = max_iou(kept, places, data_labels, data_boxes)
    paired = labels.shape[0] == data_labels.shape[0]
    rows = finite.to(data_labels.device)
    similarity = docsim(kept, places, data_labels[rows], data_boxes[rows]) if paired else torch.zeros(0)
    return LayoutMetrics(
        finite=_mean(finite),
        alignment=_mean(alignment(kept, places)),
        overlap=_mean(overlap(kept, places)),
        inside=_mean(inside(kept, places)),
        max_iou=_mean(scores),
        matched=scores.numel() / kept.shape[0] if kept.shape[0] else math.nan,
        docsim=_mean(similarity),
    )


def max_iou(labels: Tensor, boxes: Tensor, data_labels: Tensor, data_boxes: Tensor) -> Tensor:
    """(m,) float64, of the matched pairs of layouts; its mean is maxIoU, higher is better.

    Layouts of both sets with the same multiset of labels are compared: within a label, elements are assigned so that
    the sum of IoU is greatest, and the score is that sum over all labels divided by n; then layouts are assigned so
    that the sum of scores is greatest. Others have no pair. Layouts without an element are left out.
    labels, boxes: as of `measure`, finite. Source: LayoutGAN++, arXiv 2108.00871, section 4.1.
    """
    scores = [np.zeros(0)]
    ours, theirs = _by_labels(labels), _by_labels(data_labels)
    for key in ours.keys() & theirs.keys():
        rows, others = ours[key], theirs[key]
        first, second = _sorted_boxes(labels, boxes, rows), _sorted_boxes(data_labels, data_boxes, others)
        table = _iou_scores(np.array(key), first, second)
        scores.append(table[linear_sum_assignment(table, maximize=True)])
    # The order of keys is not that of the samples.
    return torch.from_numpy(np.sort(np.concatenate(scores)))


def docsim(labels: Tensor, boxes: Tensor, data_labels: Tensor, data_boxes: Tensor) -> Tensor:
    """(B,) float64, of each layout with the one of the same row, higher is better: mean weight of assigned elements.

    Weight of two elements: sqrt(min area) 2^(-|distance of centres| - 2 (|difference of widths| + |of heights|)), 0
    where the labels differ; assigned so that the sum is greatest. 0 where the numbers of elements differ by 3 or more,
    and where one layout has none. labels, boxes: as of `measure`, finite. Raises InputError for sets of two sizes.
    Source: READ, arXiv 1909.00302; as LayoutDM, arXiv 2303.08137, takes it.
    """
    if labels.shape[0] != data_labels.shape[0]:
        raise InputError(f"{labels.shape[0]} layouts beside {data_labels.shape[0]}; docsim takes pairs")
    scores = np.zeros(labels.shape[0])
    count, others = ((part != NO_ELEMENT).sum(dim=1).tolist() for part in (labels, data_labels))
    step = max(1, PAIRS // max(1, labels.shape[1] * data_labels.shape[1]))
    for start in range(0, len(scores), step):
        rows = slice(start, start + step)
        table = _docsim_weights(labels[rows], boxes[rows], data_labels[rows], data_boxes[rows])
        for row, weights in enumerate(table, start):
            n, m = count[row], others[row]
            if min(n, m) and abs(n - m) < DOCSIM_DIFFERENCE:
                part = weights[:n, :m]
                scores[row] = part[linear_sum_assignment(part, maximize=True)].mean()
    return torch.from_numpy(scores)


def _docsim_weights(labels: Tensor, boxes: Tensor, data_labels: Tensor, data_boxes: Tensor) -> np.ndarray:
    data_labels, data_boxes = data_labels.to(labels.device), data_boxes.to(boxes.device)
    first, second = boxes.to(torch.float64)[:, :, None], data_boxes.to(torch.float64)[:, None, :]
    difference = first - second
    exponent = -difference[..., :2].norm(dim=-1) - 2.0 * difference[..., 2:].abs().sum(dim=-1)
    weight = torch.minimum(areas(first), areas(second)).sqrt() * torch.exp2(exponent)
    return weight.where(labels[:, :, None] == data_labels[:, None, :], 0.0).cpu().numpy()


def _by_labels(labels: Tensor) -> dict[tuple[int, ...], list[int]]:
    """Rows of layouts by their sorted labels."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, values in enumerate(labels.tolist()):
        key = tuple(sorted(value for value in values if value != NO_ELEMENT))
        if key:
            groups[key].append(row)
    return groups


def _sorted_boxes(labels: Tensor, boxes: Tensor, rows: list[int]) -> Tensor:
    """(n, k, 4) float64, by label; the k elements of each of these layouts."""
    chosen = labels[rows]
    n = int((chosen[0] != NO_ELEMENT).sum())
    # Padding, -1, comes first.
    order = chosen.argsort(dim=1, stable=True)[:, chosen.shape[1] - n :]
    return boxes[rows].to(torch.float64).gather(1, order[:, :, None].expand(-1, -1, 4)).cpu()


def _iou_scores(labels: np.ndarray, boxes: Tensor, others: Tensor) -> np.ndarray:
    """(n, m), of boxes (n, k, 4) and (m, k, 4) with the sorted labels (k,)."""
    blocks = [slice(int(place[0]), int(place[-1]) + 1) for place in (np.flatnonzero(labels == k) for k in set(labels))]
    table = np.zeros((boxes.shape[0], others.shape[0]))
    for block in blocks:
        for row, places in enumerate(boxes[:, block]):
            ious = _iou(places[None], others[:, block])
            if ious.shape[1] == 1:
                table[row] += ious[:, 0, 0]
                continue
            table[row] += [iou[linear_sum_assignment(iou, maximize=True)].sum() for iou in ious]
    return table / len(labels)


def _iou(boxes: Tensor, others: Tensor) -> np.ndarray:
    """(m, k, k), 0 where both have no area."""
    shared = intersections(boxes, others)
    union = areas(boxes)[:, :, None] + areas(others)[:, None, :] - shared
    return (shared / union.where(union > 0, 1.0)).numpy()


def _finite(labels: Tensor, boxes: Tensor) -> Tensor:
    return (boxes.isfinite().all(dim=2) | (labels == NO_ELEMENT)).all(dim=1)


def _mean(values: Tensor) -> float:
    """Of those that are finite."""
    values = values.to(torch.float64)
    values = values[values.isfinite()]
    return float(values.mean()) if values.numel() else math.nan
