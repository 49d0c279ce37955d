"""The recipe of the weights: what it writes can be read, and is measured beside held-out pages."""

import json

import pytest
import torch
from pages import drawn
from safetensors import safe_open

from pgraft_fast.errors import StoppedError
from pgraft_fast.tasks.layouts import recipe
from pgraft_fast.tasks.layouts.data import parts_of
from pgraft_fast.tasks.layouts.elements import NO_ELEMENT, ltrb_from_cxcywh
from pgraft_fast.tasks.layouts.network import LayoutsDiT
from pgraft_fast.tasks.layouts.pages import shipped
from pgraft_fast.tasks.layouts.training import Amount, denoising_loss, shifted, train_denoiser, train_encoder
from pgraft_fast.tasks.layouts.variants import VARIANTS
from pgraft_fast.tasks.weights import load_weights

SMALL = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in recipe.PARTS:
        recipe.train_part(folder, name, Amount(steps=2, batch=8), log=lambda text: None)
    return folder


def test_the_parts_of_the_pages():
    train, held_out = parts_of(shipped())
    assert (len(train), len(held_out)) == (3_600, 400)
    rows = torch.randperm(4_000, generator=torch.Generator().manual_seed(0))[3_600:]
    assert torch.equal(held_out.boxes, shipped().boxes[rows])


@pytest.mark.slow
def test_what_is_written_is_measured_and_small(folder):
    figures = recipe.measured(folder, steps=2)
    assert set(figures) == {"data", *VARIANTS}
    assert figures["data"]["inside"] == 1.0 and 0 < figures["data"]["alignment"] < 0.3
    # Two steps of training leave noise.
    assert all(figures[name]["fd"] > 2 * figures["data"]["fd_held_out"] for name in VARIANTS)
    assert all(figures[name]["overlap_completion"] < figures[name]["overlap"] for name in VARIANTS)
    assert all(figures[name]["loss"] == pytest.approx(figures[name]["loss_held_out"], rel=0.2) for name in VARIANTS)
    assert sum((folder / f"{name}.safetensors").stat().st_size for name in recipe.PARTS) < 4_000_000
    for name in VARIANTS:
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            told = json.loads(file.metadata()["pgraft_fast"])
        assert told == {"recipe": "pgraft-fast train-base layouts", **figures[name]}


def test_weights_come_back_as_float32(folder):
    model, digest = load_weights(LayoutsDiT(VARIANTS["vp"]), folder / "vp.safetensors")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32} and len(digest) == 64
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_a_function_of_its_seed(name):
    pages = shipped().rows(torch.arange(40))

    def trained(seed):
        return list(train_denoiser(VARIANTS[name], pages, pages, Amount(steps=4, batch=4), seed, **SMALL).parameters())

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.slow
def test_training_tells_how_it_goes_and_shows_its_weights():
    pages, lines, states = shipped().rows(torch.arange(40)), [], []
    snapshot = (250, lambda average: states.append(average.head.weight.clone()))
    amount = Amount(steps=500, batch=4, rate=3e-3)
    model = train_denoiser(VARIANTS["flow"], pages, pages, amount, log=lines.append, snapshot=snapshot, **SMALL)
    assert len(lines) == 1 and lines[0].startswith("step 500, loss ") and len(states) == 2
    assert model.attention == "padded" and not model.training and not torch.equal(*states)
    # At first the head is 0, and so is what it predicts.
    with torch.no_grad():
        variant = VARIANTS["flow"]
        untrained = float(denoising_loss(LayoutsDiT(variant, **SMALL), variant, pages.labels, pages.boxes))
    assert float(lines[0].rsplit(" ", 1)[1]) < 0.8 * untrained


def test_training_ends_with_its_time():
    pages = shipped().rows(torch.arange(40))
    calls = []
    train_encoder(pages, Amount(steps=10**9, seconds=1e-9, batch=4), check=lambda: calls.append(1), **SMALL)
    assert len(calls) <= 1


def test_a_stop_is_heard_after_each_step():
    def check():
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        train_encoder(shipped().rows(torch.arange(40)), Amount(steps=3, batch=4), check=check, **SMALL)


def test_pages_are_moved_as_a_whole_and_stay_on_the_page():
    layouts = shipped().rows(torch.arange(200))
    torch.manual_seed(0)
    moved = shifted(layouts.labels, layouts.boxes)
    element = layouts.labels != NO_ELEMENT
    difference = moved - layouts.boxes
    assert not bool(difference[..., 2:].any()) and float(difference.abs().max()) <= 0.02 + 1e-6
    first = difference[:, :1].expand_as(difference)
    torch.testing.assert_close(difference[element], first[element], rtol=0, atol=1e-6)
    edges = ltrb_from_cxcywh(moved)[element]
    assert float(edges.min()) >= -1e-6 and float(edges.max()) <= 1 + 1e-6
    assert float(first[:, 0].abs().mean()) > 0.005
    labels, boxes, _ = drawn(n=5)
    assert bool(torch.isfinite(shifted(labels, boxes.nan_to_num())).all())
