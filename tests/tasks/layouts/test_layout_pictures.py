"""Layouts drawn as pages."""

import numpy as np
import torch
from pages import TIDY, TIDY_LABELS, drawn, page

from pgraft_fast.tasks.layouts.conditions import condition_of
from pgraft_fast.tasks.layouts.elements import RICO, pack
from pgraft_fast.tasks.layouts.pictures import layout_pictures


def picture(edges, labels):
    kinds, boxes = page(edges, labels)
    return layout_pictures(pack(kinds, boxes, 5), condition_of([f"{len(labels)} elements"]))[0]


def test_boxes_stand_where_they_are():
    found = picture(TIDY, TIDY_LABELS)
    assert found.shape == (220, 160, 3) and found.dtype == np.uint8
    inked = (found != 255).any(axis=2)
    assert inked[0].all() and inked[:, -1].all()
    inked[[0, -1]], inked[:, [0, -1]] = False, False
    rows, columns = np.nonzero(inked)
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [11, 197, 16, 143]
    # A point in each box, and one in the gutter between the columns.
    colours = [tuple(found[round(219 * (top + bottom) / 2), round(159 * (0.1 * left + 0.9 * right))])
               for left, top, right, bottom in TIDY]  # fmt: skip
    assert len(set(colours)) == 3 and colours[1] == colours[2] == colours[3] and tuple(found[100, 80]) == (255,) * 3


def test_a_small_box_is_seen_on_a_large_one():
    boxes = [(0.4, 0.4, 0.6, 0.6), (0.1, 0.1, 0.9, 0.9)]
    first, second = picture(boxes, [4, 0]), picture(boxes[::-1], [0, 4])
    assert np.array_equal(first, second)
    assert not np.array_equal(first, picture(boxes[1:], [0]))


def test_boxes_off_the_page_broken_or_turned_over():
    labels, boxes, _ = drawn(n=3)
    samples = pack(labels, boxes.nan_to_num(), 5)
    samples[0], samples[1], samples[2, :, 2:4] = torch.nan, 1e30, -9.0
    found = layout_pictures(samples, condition_of(["25 elements"] * 3))
    assert (found[0, 1:-1, 1:-1] == 255).all() and (found[2, 1:-1, 1:-1] == 255).all()
    assert layout_pictures(samples[:0], condition_of([])).shape == (0, 220, 160, 3)


def test_every_label_of_a_screen_has_a_colour():
    edges = [(0.1, 0.02 + 0.035 * i, 0.9, 0.05 + 0.035 * i) for i in range(25)]
    kinds, boxes = page(edges, list(range(25)))
    found = layout_pictures(pack(kinds, boxes, 25), condition_of([", ".join(RICO)], RICO), RICO)[0]
    middle = {tuple(found[round(219 * (top + bottom) / 2), 140]) for _, top, _, bottom in edges}
    assert len(middle) == 25
