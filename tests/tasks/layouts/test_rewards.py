"""Rewards of layouts, and the tricks that `tidy` must not fall for."""

import pytest
import torch
from pages import TIDY, TIDY_LABELS, drawn, page, shuffled

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts import metrics, rewards
from pgraft_fast.tasks.layouts.elements import pack, unpack

NAMES = ("alignment", "overlap", "inside", "tidy")
# Not perfect: a box is off its column and its row, and two overlap a little.
HONEST = (TIDY[0], (0.103, 0.156, 0.484, 0.507), (0.1, 0.499, 0.48, 0.9), *TIDY[3:])


def score(name, edges):
    labels, boxes = page(edges)
    return getattr(rewards, name)(pack(labels, boxes, 5), torch.tensor([len(edges)])).item()


def grid(side, height=None, n=5, step=0.15):
    return [(0.1, 0.1 + step * i, 0.1 + side, 0.1 + step * i + (height or side)) for i in range(n)]


TRICKS = {
    "in one place": [(0.2, 0.2, 0.6, 0.6)] * 5,
    "in two places": [(0.1, 0.1, 0.4, 0.9)] * 3 + [(0.6, 0.1, 0.9, 0.9)] * 2,
    "nearly in one place": [(0.2, 0.2 + 1e-4 * i, 0.6, 0.6 + 1e-4 * i) for i in range(5)],
    "points in one place": [(0.5, 0.5, 0.5, 0.5)] * 5,
    "points in a column": grid(0.0),
    "tiny": grid(1e-3),
    "tiny but as large as its sides must be": grid(0.011, 0.0055),
    "lines of no height": [(0.1, 0.1 + 0.1 * i, 0.9, 0.1 + 0.1 * i) for i in range(5)],
    "lines of no width": [(0.1 + 0.1 * i, 0.1, 0.1 + 0.1 * i, 0.9) for i in range(5)],
    "negative sizes": [(0.9, 0.9 - 0.1 * i, 0.1, 0.85 - 0.1 * i) for i in range(5)],
    "one large, the others points": [(0.1, 0.1, 0.9, 0.5), *((0.1, 0.6 + 0.05 * i, 0.1, 0.6 + 0.05 * i)
                                                             for i in range(4))],
    "one large, the others tiny": [(0.1, 0.1, 0.9, 0.5), *((0.1, 0.6 + 0.05 * i, 0.105, 0.605 + 0.05 * i)
                                                           for i in range(4))],
    "one in the other": [(0.1 + 0.05 * i, 0.1 + 0.05 * i, 0.9 - 0.05 * i, 0.9 - 0.05 * i) for i in range(5)],
    "slivers": [(0.1, 0.1 + 0.1 * i, 0.9, 0.105 + 0.1 * i) for i in range(5)],
    "tall slivers": [(0.1 + 0.1 * i, 0.1, 0.11 + 0.1 * i, 0.9) for i in range(5)],
    "all huge": [(0.0, 0.0, 1.0, 1.0)] * 5,
    "one huge": [(0.0, 0.0, 1.0, 1.0), *grid(0.3, 0.1, n=4)],
    "larger than the page": [(-1.0 - i, -1.0 - i, 2.0 + i, 2.0 + i) for i in range(5)],
    "off the page": [(2.0, float(i), 2.5, i + 0.5) for i in range(5)],
    "one off the page": [*TIDY[:4], (1.52, 0.55, 1.9, 0.9)],
    "over the edge": [(0.8, 0.1 + 0.15 * i, 1.05, 0.2 + 0.15 * i) for i in range(5)],
    "very far": [(1e6, 1e6 * i, 1.1e6, 1e6 * i + 1e5) for i in range(5)],
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_every_trick_loses_to_an_honest_page(name):
    assert score("tidy", TRICKS[name]) < score("tidy", HONEST) - 0.1 < score("tidy", TIDY) - 0.1


def test_an_honest_page_pays_for_nothing_else():
    labels, boxes = page(HONEST)
    cost = metrics.alignment(labels, boxes) + 3.0 * metrics.overlap(labels, boxes)
    assert score("tidy", HONEST) == pytest.approx(-cost.item(), abs=1e-5) and -0.3 < score("tidy", HONEST) < -0.03
    assert score("tidy", TIDY) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 12, 25])
def test_tricks_at_other_numbers_of_elements(n):
    honest = [(0.1, 0.02 + i * 0.96 / n, 0.9, 0.02 + (i + 0.8) * 0.96 / n) for i in range(n)]
    best = score("tidy", honest)
    assert best == pytest.approx(0.0, abs=1e-4)
    tricks = ([(0.0, 0.0, 1.0, 1.0)] * n, [(0.5, 0.5, 0.5, 0.5)] * n, grid(0.011, 0.0055, n, 0.03), grid(1e-3, n=n))
    assert all(score("tidy", trick) < best - 0.1 for trick in tricks)
    assert score("tidy", [(2.0, float(i), 2.5, i + 0.5) for i in range(n)]) < best - 1


def test_no_element_is_better_as_a_point_or_off_the_page():
    crowded = [(0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.5), (0.1, 0.15, 0.5, 0.55), (0.1, 0.1, 0.5, 0.3)]
    for gone in ((0.1, 0.1, 0.1, 0.1), (1.1, 0.1, 1.5, 0.3)):
        assert score("tidy", [*crowded[:3], gone]) < score("tidy", crowded)


def test_tricks_win_the_plain_rewards():
    """What `tidy` is for."""
    assert score("alignment", TRICKS["in one place"]) > score("alignment", HONEST)
    assert score("overlap", TRICKS["points in a column"]) > score("overlap", HONEST)


def test_rewards_are_the_metrics():
    labels, boxes, count = drawn()
    samples = pack(labels, boxes, 5)
    parts = unpack(samples, count)
    for name, sign in (("alignment", -1), ("overlap", -1), ("inside", 1)):
        values = getattr(rewards, name)(samples, count)
        expected = sign * getattr(metrics, name)(*parts)
        assert values.dtype == torch.float32 and torch.allclose(values, expected.float())


@pytest.mark.parametrize("name", NAMES)
def test_order_padding_and_neighbours_change_no_reward(name):
    labels, boxes, count = drawn()
    samples, reward = pack(labels, boxes, 5), getattr(rewards, name)
    values = reward(samples, count)
    assert torch.allclose(reward(pack(*shuffled(labels, boxes, count), 5), count), values)
    for row, size in enumerate(count.tolist()):
        alone = torch.full((1, 40, 9), torch.nan)
        alone[0, :size] = samples[row, :size]
        assert torch.allclose(reward(alone, count[row : row + 1]), values[row])
    assert reward(samples[:0], count[:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 3, 6])
def test_what_is_not_finite_has_the_lowest_value(name, value, column):
    labels, boxes = (part.expand(3, *part.shape[1:]) for part in page(TIDY, TIDY_LABELS))
    samples = pack(labels, boxes, 5)
    samples[1, 2, column] = value
    values = getattr(rewards, name)(samples, torch.tensor([5, 5, 5]))
    assert values[1] == (0.0 if name == "inside" else rewards.LOWEST) and values[0] == values[2] > values[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e20, 3e38])
def test_numbers_that_are_finite_but_huge(name, size):
    samples = torch.full((1, 5, 9), size) * torch.tensor([1.0, -1, 1, -1, 1])[None, :, None]
    value = getattr(rewards, name)(samples, torch.tensor([5])).item()
    assert rewards.LOWEST <= value <= 0.0


def test_pages_of_one_element_and_of_none():
    single = [(0.1, 0.1, 0.9, 0.5)]
    assert [score(name, single) for name in NAMES] == [0.0, 0.0, 1.0, 0.0]
    none = pack(*page([]), 5), torch.tensor([0])
    assert [getattr(rewards, name)(*none).item() for name in NAMES[:3]] == [0.0, 0.0, 0.0]
    assert rewards.tidy(*none).item() == -1.0


def test_counts_of_another_number_of_samples():
    with pytest.raises(InputError, match="are needed"):
        rewards.tidy(torch.zeros(2, 5, 9), torch.tensor([3]))
