"""Conditions of layouts: read from texts, drawn from data, told to the network."""

import pytest
import torch
from pages import drawn

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.conditions import (
    KINDS,
    condition_from,
    condition_of,
    counts_of,
    element_mask,
    prompt_texts,
    training_condition,
)
from pgraft_fast.tasks.layouts.elements import RICO, Layouts
from pgraft_fast.tasks.layouts.pages import shipped


def test_texts_of_the_three_kinds():
    texts = ["2 elements", "Title, text,  figure", "table at 0.5 0.25 0.75 0.125, 1 element, element at .5 .5 1 1"]
    condition = condition_of(texts, n_max=4)
    assert condition.tolist() == [
        [[5, 0, 0, 0, 0, 0]] * 2 + [[-1, 0, 0, 0, 0, 0]] * 2,
        [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0]],
        [[3, 1, 0.5, 0.25, 0.75, 0.125], [5, 0, 0, 0, 0, 0], [5, 1, 0.5, 0.5, 1, 1], [-1, 0, 0, 0, 0, 0]],
    ]
    assert condition.dtype == torch.float32 and counts_of(condition).tolist() == [2, 3, 3]
    assert element_mask(condition)[1].tolist() == [True, True, True, False]
    assert condition_of([]).shape == (0, 25, 6)


def test_labels_of_a_screen():
    assert condition_of(["On/Off Switch, list item"], RICO)[0, :3, 0].tolist() == [16, 4, -1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is no label or number of elements; labels: text, title, list, table, figure"),
        ("seven elements", "'seven elements' is no label"),
        ("text,, text", "'' is no label"),
        ("title at 0.5 0.5", "'title at 0.5 0.5' is no label"),
        ("title at 0.5 0.5 1.5 0.1", "'0.5 0.5 1.5 0.1' is no centre x"),
        ("title at 0.5 0.5 nan 0.1", "'0.5 0.5 nan 0.1' is no centre x"),
        ("title at a b c d", "'a b c d' is no centre x"),
        ("0 elements", "1 to 25 elements fit"),
        ("26 elements", "1 to 25 elements fit"),
        ("20 elements, 6 elements", "1 to 25 elements fit"),
    ],
)
def test_texts_that_cannot_be_read(text, reason):
    with pytest.raises(InputError) as error:
        condition_of(["2 elements", text])
    assert str(error.value).startswith(f"layout {text!r} cannot be read: {reason}")
    assert str(error.value).endswith("; for example 'title at 0.5 0.08 0.6 0.04, text, 3 elements'")
    assert "\n" not in str(error.value)


def test_prompts_of_a_data_set():
    layouts = shipped().rows(torch.arange(40))
    numbers = counts_of(condition_of(prompt_texts(layouts, "number", 40)))
    assert torch.equal(numbers, layouts.count.sort().values)
    labels = condition_of(prompt_texts(layouts, "labels", 40, seed=3))[:, :, 0]
    told = {tuple(row) for row in labels.tolist()}
    padded = torch.nn.functional.pad(layouts.labels, (0, 25 - layouts.labels.shape[1]), value=-1)
    assert told == {tuple(row) for row in padded.double().tolist()}


def test_prompts_of_completion_hold_elements_of_the_data():
    layouts = shipped().rows(torch.arange(30))
    condition = condition_of(prompt_texts(layouts, "completion", 60, seed=1))
    assert torch.equal(counts_of(condition).sort().values, layouts.count.repeat(2).sort().values)
    given = condition[:, :, 1] == 1
    share = given.sum(dim=1)
    assert bool((share >= 1).all()) and bool((share < counts_of(condition)).logical_or(counts_of(condition) == 1).all())
    known = layouts.boxes[layouts.labels >= 0]
    distance = (condition[:, :, 2:][given][:, None] - known[None]).abs().amax(dim=2).amin(dim=1)
    # Four digits are told.
    assert float(distance.max()) < 1e-3
    assert bool((condition[:, :, 0][~given & element_mask(condition)] == 5).all())


def test_prompts_are_drawn_by_their_seed_and_there_are_as_many_as_asked_for():
    layouts = shipped().rows(torch.arange(7))
    for kind in KINDS:
        assert len(prompt_texts(layouts, kind, 17)) == 17
        assert prompt_texts(layouts, kind, 17, seed=5) == prompt_texts(layouts, kind, 17, seed=5)
    assert prompt_texts(layouts, "labels", 7, seed=1) != prompt_texts(layouts, "labels", 7, seed=2)
    with pytest.raises(InputError, match=r"^kind 'boxes' of prompts is unknown; known: number, labels, completion$"):
        prompt_texts(layouts, "boxes", 3)


def test_what_training_tells():
    labels, boxes, _ = drawn(n=300)
    boxes = boxes.nan_to_num()
    kind, share = torch.arange(300) % 3, torch.full((300,), 0.25)
    torch.manual_seed(0)
    condition = training_condition(labels, boxes, 5, kind, share)
    element = labels >= 0
    assert torch.equal(element_mask(condition), element)
    assert bool((condition[kind == 0][:, :, 0][element[kind == 0]] == 5).all())
    assert torch.equal(condition[kind == 1][:, :, 0], labels[kind == 1].float())
    given = condition[:, :, 1] == 1
    assert not bool(given[kind != 2].any()) and not bool((given & ~element).any())
    part = float(given[kind == 2].sum() / element[kind == 2].sum())
    # 5 standard deviations of about 1,300 elements.
    assert abs(part - 0.25) < 0.06
    assert torch.equal(condition[:, :, 2:][given], boxes[given]) and not bool(condition[:, :, 2:][~given].any())
    assert torch.equal(condition[:, :, 0][given], labels[given].float())


def test_a_condition_of_everything():
    layouts = Layouts(torch.tensor([[1, -1]]), torch.tensor([[[0.5, 0.5, 0.25, 0.25], [0.0] * 4]]), ("a", "b"))
    everything = torch.ones(1, 2, dtype=torch.bool)
    condition = condition_from(layouts.labels, layouts.boxes, everything, everything, 2)
    assert condition.tolist() == [[[1, 1, 0.5, 0.5, 0.25, 0.25], [-1, 0, 0, 0, 0, 0]]]
