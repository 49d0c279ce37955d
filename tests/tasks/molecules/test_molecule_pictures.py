"""Molecules as pictures: what is drawn how."""

import importlib.util

import numpy as np
import pytest
import torch

from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.elements import pack
from pgraft_fast.tasks.molecules.pictures import balls_and_sticks, molecule_pictures
from pgraft_fast.tasks.molecules.shipped import padded_elements
from pgraft_fast.tasks.molecules.stability import bond_orders

PAPER, GREY = 255, 244


@pytest.fixture
def real():
    molecules = shipped().rows(torch.tensor([400, 900, 3000]))
    return pack(molecules.elements, molecules.positions, 23), padded_elements(molecules)


def test_valid_ones_are_drawn_as_graphs(real):
    pytest.importorskip("rdkit")
    samples, condition = real
    torn, empty = samples.clone(), samples.clone()
    torn[1, 0, :3] += 8.0
    empty[2, 0, 0] = torch.nan
    pictures = molecule_pictures(torch.cat((samples, torn[1:2], empty[2:])), torch.cat((condition, condition[1:])))
    assert pictures.shape == (5, 120, 120, 3) and pictures.dtype == np.uint8
    assert pictures[:, 0, 0, 0].tolist() == [PAPER] * 3 + [GREY] * 2
    assert all((picture.min(axis=2) < 150).sum() > 50 for picture in pictures[:4])
    other = torch.nn.functional.pad(samples, (0, 0, 0, 6), value=7.0)
    wider = torch.nn.functional.pad(condition, (0, 6), value=-1)
    assert np.array_equal(molecule_pictures(other, wider), pictures[:3])
    assert molecule_pictures(samples[:0], condition[:0]).shape == (0, 120, 120, 3)


def test_without_rdkit_all_are_balls(real, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert molecule_pictures(*real)[:, 0, 0, 0].tolist() == [GREY] * 3


def test_balls_and_sticks():
    """Water in its plane: a red ball between two pale ones, two sticks; the same where it was turned and moved."""
    elements = torch.tensor([3, 0, 0, -1])
    points = torch.tensor([[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47], [9.0, 9.0, 9.0]])
    orders = bond_orders(elements[None], points[None])[0]
    picture = balls_and_sticks(elements, points, orders).astype(int)
    red = (picture[:, :, 0] > 180) & (picture[:, :, 1] < 80)
    assert 150 < red.sum() < 1500
    across = np.nonzero(red)[1]
    assert abs(across.mean() - 59.5) < 4
    without = balls_and_sticks(elements, points, torch.zeros_like(orders)).astype(int)
    assert (np.abs(picture - without).max(axis=2) > 20).sum() > 20
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    turned = balls_and_sticks(elements, points @ turn + 2.0, orders).astype(int)
    red_again = (turned[:, :, 0] > 180) & (turned[:, :, 1] < 80)
    assert red_again.sum() == pytest.approx(red.sum(), rel=0.1)


def test_what_is_nowhere_is_left_out():
    elements, points = torch.tensor([1, 3]), torch.tensor([[0.0, 0, 0], [torch.nan, 0, 0]])
    picture = balls_and_sticks(elements, points, torch.zeros(2, 2, dtype=torch.int8)).astype(int)
    assert not ((picture[:, :, 0] > 180) & (picture[:, :, 1] < 80)).any()
    nothing = balls_and_sticks(torch.tensor([-1]), torch.zeros(1, 3), torch.zeros(1, 1, dtype=torch.int8))
    assert (nothing == GREY).all()
