"""maxIoU and DocSim against plain searches over all assignments, and all figures of a set."""

import itertools
import math

import pytest
import torch
from pages import TIDY, TIDY_LABELS, drawn, page, shuffled

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.comparison import docsim, max_iou, measure
from pgraft_fast.tasks.layouts.metrics import alignment, inside, overlap


def listed(labels, boxes):
    """Layouts as lists of (label, box)."""
    return [
        [(k, place) for k, place in zip(row, places, strict=True) if k >= 0]
        for row, places in zip(labels.tolist(), boxes.tolist(), strict=True)
    ]


def iou(first, second):
    shared = 1.0
    for axis in (0, 1):
        low = max(box[axis] - box[axis + 2] / 2 for box in (first, second))
        high = min(box[axis] + box[axis + 2] / 2 for box in (first, second))
        shared *= max(0.0, high - low)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def weight(first, second):
    if first[0] != second[0]:
        return 0.0
    (x, y, w, h), (u, v, s, t) = first[1], second[1]
    return math.sqrt(min(w * h, s * t)) * 2 ** (-math.hypot(x - u, y - v) - 2 * (abs(w - s) + abs(h - t)))


def best(table):
    """Of all assignments of a table with no more rows than columns."""
    orders = itertools.permutations(range(len(table[0])), len(table))
    return max(sum(table[i][j] for i, j in enumerate(order)) for order in orders)


def plain_iou(first, second):
    orders = itertools.permutations(second)
    fits = (order for order in orders if [k for k, _ in order] == [k for k, _ in first])
    return max(sum(iou(a, b) for (_, a), (_, b) in zip(first, order, strict=True)) for order in fits) / len(first)


def test_max_iou_against_all_assignments():
    labels, boxes, _ = drawn(60, n_labels=2, n_max=4)
    ours, theirs = listed(labels[:24], boxes[:24]), listed(labels[24:], boxes[24:])

    def key(layout):
        return tuple(sorted(k for k, _ in layout))

    expected = []
    for group in {key(layout) for layout in ours}:
        rows, others = ([layout for layout in part if key(layout) == group] for part in (ours, theirs))
        if others:
            table = [[plain_iou(a, b) for b in others] for a in rows]
            table = table if len(rows) <= len(others) else [list(column) for column in zip(*table, strict=True)]
            expected.append((best(table) if len(table) < 5 else None, min(len(rows), len(others))))
    scores = max_iou(labels[:24], boxes[:24], labels[24:], boxes[24:])
    assert len(expected) > 5 and None not in [total for total, _ in expected]
    assert scores.numel() == sum(n for _, n in expected)
    assert scores.sum().item() == pytest.approx(sum(total for total, _ in expected), abs=1e-9)


def test_docsim_against_all_assignments():
    labels, boxes, _ = drawn(60, n_labels=2, n_max=6)
    pairs = list(zip(listed(labels[:30], boxes[:30]), listed(labels[30:], boxes[30:]), strict=True))
    expected = []
    for first, second in (sorted(pair, key=len) for pair in pairs):
        table = [[weight(a, b) for b in second] for a in first]
        expected.append(0.0 if len(second) - len(first) >= 3 else best(table) / len(first))
    assert 0 < expected.count(0.0) < 25
    assert docsim(labels[:30], boxes[:30], labels[30:], boxes[30:]).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_page_beside_itself():
    labels, boxes = page(TIDY, TIDY_LABELS)
    assert max_iou(labels, boxes, labels, boxes).tolist() == pytest.approx([1.0])
    root = sum(math.sqrt((right - left) * (bottom - top)) for left, top, right, bottom in TIDY) / 5
    assert docsim(labels, boxes, labels, boxes).tolist() == pytest.approx([root])


def test_order_and_padding_change_nothing():
    labels, boxes, count = drawn(40, n_labels=2, n_max=5)
    other = drawn(40, n_labels=2, n_max=5, seed=3)[:2]
    for metric in (max_iou, docsim):
        values = metric(labels, boxes, *other)
        assert values.numel()
        wide = torch.nn.functional.pad(labels, (0, 9), value=-1), torch.nn.functional.pad(boxes, (0, 0, 0, 9))
        for changed in (shuffled(labels, boxes, count), wide):
            assert torch.allclose(metric(*changed, *other), values, rtol=1e-12)


def test_other_labels_have_no_pair():
    labels, boxes = page(TIDY, TIDY_LABELS)
    assert max_iou(labels, boxes, labels + 1, boxes).numel() == 0
    assert docsim(labels, boxes, labels + 5, boxes).tolist() == [0.0]
    nothing = torch.full_like(labels, -1)
    assert max_iou(nothing, boxes, nothing, boxes).numel() == 0
    assert docsim(nothing, boxes, nothing, boxes).tolist() == [0.0]


def test_boxes_of_no_area_score_nothing():
    labels, boxes = page([(0.2, 0.2, 0.2, 0.2), (0.4, 0.4, 0.3, 0.3)])
    assert max_iou(labels, boxes, labels, boxes).tolist() == docsim(labels, boxes, labels, boxes).tolist() == [0.0]


def test_figures_of_a_set():
    labels, boxes, _ = drawn(40, n_labels=2, n_max=4)
    data = drawn(40, n_labels=2, n_max=4, seed=5)[:2]
    figures = measure(labels, boxes, *data)
    assert figures.finite == 1.0
    for metric in (alignment, overlap, inside):
        assert getattr(figures, metric.__name__) == pytest.approx(metric(labels, boxes).mean().item())
    assert figures.max_iou == pytest.approx(max_iou(labels, boxes, *data).mean().item())
    assert figures.matched == max_iou(labels, boxes, *data).numel() / 40
    assert figures.docsim == pytest.approx(docsim(labels, boxes, *data).mean().item())
    broken = boxes.clone()
    broken[:10, 0] = torch.nan
    part = measure(labels, broken, *data)
    assert part.finite == 0.75 and part.overlap == pytest.approx(overlap(labels, boxes)[10:].mean().item())
    assert part.docsim == pytest.approx(docsim(labels, boxes, *data)[10:].mean().item())
    assert math.isnan(measure(labels[:30], boxes[:30], *data).docsim)


def test_figures_of_nothing():
    labels, boxes, _ = drawn(4)
    none = measure(labels[:0], boxes[:0], labels, boxes)
    assert all(math.isnan(value) for value in vars(none).values())
    broken = measure(labels, torch.full_like(boxes, torch.nan), labels, boxes)
    assert broken.finite == 0.0 and math.isnan(broken.alignment) and math.isnan(broken.matched)
    with pytest.raises(InputError, match=r"^4 layouts beside 3; docsim takes pairs$"):
        docsim(labels, boxes, labels[:3], boxes[:3])
