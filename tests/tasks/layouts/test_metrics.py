"""Alignment, overlap and inside, by hand and against plain loops."""

import math

import pytest
import torch
from pages import TIDY, drawn, page, shuffled

from pgraft_fast.tasks.layouts import metrics
from pgraft_fast.tasks.layouts.elements import ltrb_from_cxcywh
from pgraft_fast.tasks.layouts.metrics import alignment, inside, overlap

METRICS = (alignment, overlap, inside)


def lines(box):
    x, y, w, h = box
    return x - w / 2, x, x + w / 2, y - h / 2, y, y + h / 2


def plain(boxes):
    """The three figures of a page as loops over lists."""
    n, cost, shares, within = len(boxes), 0.0, 0.0, 0
    for i, box in enumerate(boxes):
        left, _, right, top, _, bottom = lines(box)
        within += min(left, top, 1 - right, 1 - bottom) >= -1e-3
        distances = []
        for j, other in enumerate(boxes):
            if i != j:
                distances += [abs(a - b) for a, b in zip(lines(box), lines(other), strict=True)]
                wide = min(right, lines(other)[2]) - max(left, lines(other)[0])
                high = min(bottom, lines(other)[5]) - max(top, lines(other)[3])
                if wide > 0 and high > 0:
                    shares += wide * high / (box[2] * box[3])
        cost -= math.log(1 - min(distances, default=0.0))
    return 100 * cost / n, shares / n, within / n


def test_a_page_by_hand():
    # The second is 0.02 right of the first and covers a quarter of it; the third shares no line.
    labels, boxes = page([(0.1, 0.1, 0.5, 0.5), (0.12, 0.3, 0.3, 0.7), (0.55, 0.75, 0.95, 1.05)])
    # Nearest lines: the left edges of the first two, 0.02; the bottoms of the last two, 0.35.
    expected = -100 * (2 * math.log(1 - 0.02) + math.log(1 - 0.35)) / 3
    assert alignment(labels, boxes).item() == pytest.approx(expected, abs=1e-6)
    shared = (0.3 - 0.12) * (0.5 - 0.3)
    assert overlap(labels, boxes).item() == pytest.approx((shared / 0.16 + shared / 0.072) / 3, abs=1e-6)
    assert inside(labels, boxes).item() == pytest.approx(2 / 3, abs=1e-6)


def test_a_tidy_page():
    labels, boxes = page(TIDY)
    assert alignment(labels, boxes).item() == pytest.approx(0.0, abs=1e-6)
    assert (overlap(labels, boxes).item(), inside(labels, boxes).item()) == (0.0, 1.0)


def test_drawn_pages_against_plain_loops():
    labels, boxes, count = drawn()
    values = torch.stack([metric(labels, boxes) for metric in METRICS], dim=1)
    for row, size in enumerate(count.tolist()):
        assert values[row].tolist() == pytest.approx(plain(boxes[row, :size].tolist()), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_order_padding_and_neighbours_change_nothing(metric):
    labels, boxes, count = drawn()
    values = metric(labels, boxes)
    assert values.dtype == torch.float64 and values.shape == (50,)
    assert torch.allclose(metric(*shuffled(labels, boxes, count)), values, rtol=1e-12, atol=1e-12)
    wide = torch.nn.functional.pad(labels, (0, 9), value=-1), torch.nn.functional.pad(boxes, (0, 0, 0, 9), value=0.3)
    assert torch.allclose(metric(*wide), values, rtol=1e-12, atol=1e-12)
    for row, size in enumerate(count.tolist()):
        alone = metric(labels[row : row + 1, :size], boxes[row : row + 1, :size])
        assert torch.allclose(alone, values[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", [alignment, overlap])
@pytest.mark.parametrize("filling", [0.3, torch.nan, torch.inf])
def test_gradients_are_of_elements_alone(metric, filling):
    labels, boxes, _ = drawn()
    element = (labels >= 0)[:, :, None]
    boxes = boxes.where(element, filling).requires_grad_()
    gradient = torch.autograd.grad(metric(labels, boxes).sum(), boxes)[0]
    assert bool(gradient.isfinite().all()) and not gradient.where(element, 0.0).equal(torch.zeros_like(gradient))
    assert not gradient.where(~element, 0.0).any()


@pytest.mark.parametrize(("metric", "value"), [(alignment, 0.0), (overlap, 0.0), (inside, 1.0)])
def test_a_page_of_one_element(metric, value):
    assert metric(*page([(0.1, 0.2, 0.6, 0.7)])).tolist() == [value]


def test_a_page_of_none():
    labels, boxes = torch.full((2, 3), -1), torch.full((2, 3, 4), torch.nan)
    for shape in (slice(0, 3), slice(0, 0)):
        part = labels[:, shape], boxes[:, shape]
        assert alignment(*part).tolist() == overlap(*part).tolist() == [0.0, 0.0]
        assert inside(*part).isnan().all()
    assert [metric(labels[:0], boxes[:0]).shape for metric in METRICS] == [(0,)] * 3


def test_boxes_in_one_place_of_no_area_and_off_the_page():
    twins = page([(0.2, 0.2, 0.6, 0.6)] * 4)
    assert alignment(*twins).item() == 0.0 and overlap(*twins).item() == pytest.approx(3.0)
    points = page([(0.2, 0.2, 0.2, 0.6), (0.1, 0.1, 0.5, 0.7), (0.3, 0.3, 0.3, 0.3)])
    assert overlap(*points).item() == 0.0
    # A negative width is no area, but lines stay what they are.
    assert overlap(*page([(0.6, 0.2, 0.2, 0.6), (0.1, 0.1, 0.7, 0.7)])).item() == 0.0
    beyond = page([(-3.0, 0.1, -2.5, 0.4), (5.0, 7.0, 6.0, 9.0), (0.0, 0.0, 1.0, 1.0)])
    assert inside(*beyond).item() == pytest.approx(1 / 3) and bool(alignment(*beyond).isfinite().all())


def test_over_the_edge_by_less_than_the_tolerance():
    labels, boxes = page([(-0.0009, 0.0, 0.5, 0.5), (-0.0011, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0009, 1.0011)])
    assert inside(labels, boxes).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_box_that_is_not_finite(metric, value):
    labels, boxes = (part.expand(3, *part.shape[1:]).clone() for part in page(TIDY))
    boxes[1, 2, 3] = value
    assert metric(labels, boxes).isnan().tolist() == [False, True, False]


def test_edges_read_as_centre_and_size_give_other_numbers():
    labels, boxes = page(TIDY)
    edges = ltrb_from_cxcywh(boxes)
    assert overlap(labels, edges).item() > 0.5 and inside(labels, edges).item() < 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_padding_read_as_a_label_gives_other_numbers(metric):
    labels, boxes, _ = drawn(n_max=10)
    padded = (labels < 0).sum(dim=1) > 1
    values = metric(labels.clamp(min=0), boxes.nan_to_num(2.0))
    # Pages with no box within the page have 0 of `inside` either way.
    assert int(((values != metric(labels, boxes)) & padded).sum()) > 0.6 * int(padded.sum()) > 10


def test_chunks_change_nothing(monkeypatch):
    labels, boxes, _ = drawn(300)
    whole = alignment(labels, boxes), overlap(labels, boxes)
    monkeypatch.setattr(metrics, "PAIRS", 7 * 25**2)
    parts = alignment(labels, boxes), overlap(labels, boxes)
    assert all(torch.equal(part, value) for part, value in zip(parts, whole, strict=True))


def test_a_page_of_200_elements():
    labels, boxes, _ = drawn(n=3, n_max=200)
    labels, boxes = labels.clamp(min=0), boxes.nan_to_num(0.5)
    for row in range(3):
        values = [metric(labels, boxes)[row].item() for metric in METRICS]
        assert values == pytest.approx(plain(boxes[row].tolist()), rel=1e-6)
