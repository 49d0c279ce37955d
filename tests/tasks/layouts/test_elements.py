"""The tensor that a model of layouts sees, and which layouts are the same."""

import pytest
import torch
from pages import drawn, shuffled

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.elements import (
    BOX_SCALE,
    LABEL_SETS,
    NO_ELEMENT,
    PUBLAYNET,
    RICO,
    Layouts,
    cxcywh_from_ltrb,
    ltrb_from_cxcywh,
    pack,
    same,
    unpack,
)  # fmt: skip


def test_label_sets():
    assert (len(PUBLAYNET), len(RICO)) == (5, 25) and len(set(RICO)) == 25
    assert LABEL_SETS == {"publaynet": PUBLAYNET, "rico": RICO}


def test_columns_of_a_page():
    samples = pack(torch.tensor([[3, 0, -1]]), torch.tensor([[[0.5, 0.25, 0.5, 0.35], [0.5] * 4, [9.0] * 4]]), 5, 4)
    assert samples.dtype == torch.float32
    columns = torch.tensor([
        [0.0, -1.0, 0.0, 1.0, 0, 0, 0, 2, 0], [0.0, 0.0, 0.0, 1.6, 2, 0, 0, 0, 0], [0] * 9, [0] * 9
    ])  # fmt: skip
    torch.testing.assert_close(samples[0], columns, rtol=0, atol=1e-6)
    assert not bool(samples[0, 2:].any())


@pytest.mark.parametrize("n_labels", [1, 5, 25])
def test_unpack_reads_what_pack_wrote(n_labels):
    labels, boxes, count = drawn(n_labels=n_labels)
    samples = pack(labels, boxes, n_labels, 30)
    assert samples.shape == (50, 30, 4 + n_labels)
    read, places = unpack(samples, count)
    assert torch.equal(read[:, :25], labels) and bool((read[:, 25:] == NO_ELEMENT).all())
    assert torch.equal(places[:, :25], boxes.nan_to_num())
    layouts = Layouts(labels, boxes, PUBLAYNET)
    assert torch.equal(layouts.count, count) and len(layouts.rows(torch.tensor([3, 1]))) == 2


def test_what_is_beyond_the_count_is_not_read():
    labels, boxes, count = drawn()
    samples = pack(labels, boxes, 5)
    filled = samples.where(torch.arange(25)[None, :, None] < count[:, None, None], torch.nan)
    for part, whole in zip(unpack(filled, count), unpack(samples, count), strict=True):
        assert torch.equal(part, whole)
    assert torch.equal(same(filled, count), same(samples, count))


@pytest.mark.parametrize("column", range(9))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_element_with_a_number_that_is_none_has_no_box(column, value):
    labels, boxes, count = drawn(n=2)
    samples = pack(labels, boxes, 5)
    samples[1, 0, column] = value
    places = unpack(samples, count)[1]
    assert places.isnan().all(dim=2).nonzero().tolist() == [[1, 0]] and same(samples, count)[1] == -2


def test_edges_and_centres():
    edges = torch.tensor([0.25, 0.125, 0.75, 0.25])
    assert cxcywh_from_ltrb(edges).tolist() == [0.5, 0.1875, 0.5, 0.125]
    assert torch.equal(ltrb_from_cxcywh(cxcywh_from_ltrb(edges)), edges)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 5, -1]], r"^layout 0, element 1: label 5; 0 to 4 are known, -1 only after the last element$"),
        ([[0, 1, 2], [0, -1, 2]], r"^layout 1, element 1: label -1; "),
        ([[0, -2, -1]], r"^layout 0, element 1: label -2; "),
        ([[1, 1, -1], [0, 1, 2]], r"^layout 1 has 3 elements; at most 2 fit$"),
    ],
)
def test_labels_that_are_wrong(labels, message):
    rows = torch.tensor(labels)
    with pytest.raises(InputError, match=message):
        pack(rows, torch.rand(*rows.shape, 4), 5, 2 if "fit" in message else 3)


def test_shapes_that_are_wrong():
    for samples, count in ((torch.zeros(2, 5, 4), torch.ones(2)), (torch.zeros(2, 5, 9), torch.ones(3))):
        with pytest.raises(InputError, match=r"\(B, N, 4 \+ labels\) with \(B,\) are needed"):
            unpack(samples, count)
    with pytest.raises(InputError, match=r"^counts from 1 to 6; 0 to 5 fit$"):
        unpack(torch.zeros(2, 5, 9), torch.tensor([1, 6]))
    with pytest.raises(InputError, match=r"\(B, N\) and \(B, N, 4\) needed"):
        pack(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 4, 4), 5)
    assert pack(torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 4, 4), 5).shape == (0, 25, 9)
    assert same(torch.empty(0, 4, 9), torch.empty(0)).shape == (0,)


def test_the_same_layout():
    labels, boxes, count = drawn(n=20)
    samples = pack(labels, boxes, 5)
    numbers = same(samples, count)
    assert numbers.dtype == torch.int64 and numbers.unique().numel() == 20 and bool((numbers >= 0).all())
    assert torch.equal(same(pack(*shuffled(labels, boxes, count), 5), count), numbers)
    assert torch.equal(same(torch.nn.functional.pad(samples, (0, 0, 0, 7)), count), numbers)
    samples = pack(labels, cxcywh_from_ltrb(ltrb_from_cxcywh(boxes).mul(64).round().div(64)), 5)
    numbers = same(samples, count)
    near, far = samples.clone(), samples.clone()
    near[:, 0, 0] += BOX_SCALE * 0.4 / 64
    far[:, 0, 0] += BOX_SCALE * 0.6 / 64
    assert torch.equal(same(near, count), numbers) and not bool((same(far, count) == numbers).any())
    relabelled = samples.clone()
    relabelled[:, 0, 4:] = relabelled[:, 0, 4:].roll(1, dims=1)
    assert not bool((same(relabelled, count) == numbers).any())


def test_layouts_of_no_element_or_far_away():
    samples = torch.zeros(3, 2, 9)
    samples[1] = 1e30
    assert same(samples, torch.tensor([0, 2, 0])).tolist()[0::2] == [same(samples, torch.tensor([0, 2, 0]))[0]] * 2
