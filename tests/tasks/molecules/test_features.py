"""Features of molecules, against a loop."""

import math

import pytest
import torch

from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.elements import NO_ATOM, SYMBOLS, pack
from pgraft_fast.tasks.molecules.features import BONDS, CENTRES, LEAST_DEVIATION, WIDTH, counted, deviations
from pgraft_fast.tasks.molecules.stability import bond_orders


def test_against_a_loop():
    molecules = shipped().rows(torch.tensor([0, 5, 40, 700, 3920]))
    elements, n = molecules.elements, 23
    found = counted(pack(elements, molecules.positions, n), _padded(elements, n))
    assert found.shape == (5, 60) and found.dtype == torch.float32
    for row, (kinds, points) in enumerate(zip(elements.tolist(), molecules.positions.double(), strict=True)):
        atoms = [slot for slot, kind in enumerate(kinds) if kind != NO_ATOM]
        orders = bond_orders(elements[row : row + 1], molecules.positions[row : row + 1])[0]
        numbers = [sum(kind == element for kind in kinds) for element in range(len(SYMBOLS))]
        bonds, histogram = dict.fromkeys(BONDS, 0), [[0.0] * len(CENTRES) for _ in range(3)]
        for place, a in enumerate(atoms):
            for b in atoms[place + 1 :]:
                if orders[a, b]:
                    bonds[(int(orders[a, b]), *sorted((kinds[a], kinds[b])))] += 1
                length = float((points[a] - points[b]).norm())
                for bin_, centre in enumerate(CENTRES):
                    weight = math.exp(-((length - centre) ** 2) / (2.0 * WIDTH**2))
                    histogram[(kinds[a] != 0) + (kinds[b] != 0)][bin_] += weight
        wanted = [*numbers, *bonds.values(), *[number for of_pair in histogram for number in of_pair]]
        assert found[row].tolist() == pytest.approx(wanted, abs=1e-3)


def test_padding_motion_and_order_change_nothing():
    molecules = shipped().rows(torch.arange(300, 340))
    elements, points = molecules.elements, molecules.positions
    found = counted(pack(elements, points, 23), _padded(elements, 23))
    other = pack(elements, points, 29)
    other[:, 25:] = torch.nan
    assert torch.equal(counted(other, _padded(elements, 29)), found)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    moved = pack(elements, points @ turn + 1.0, 23)
    torch.testing.assert_close(counted(moved, _padded(elements, 23)), found, atol=1e-3, rtol=1e-4)
    same_size = molecules.count == molecules.count[0]
    kinds, places = elements[same_size][:, : int(molecules.count[0])], points[same_size][:, : int(molecules.count[0])]
    order = torch.randperm(kinds.shape[1], generator=torch.Generator().manual_seed(1))
    permuted = counted(pack(kinds[:, order], places[:, order], 23), _padded(kinds, 23))
    torch.testing.assert_close(permuted, found[same_size], atol=1e-4, rtol=1e-5)


def test_what_is_no_number_and_nothing_at_all():
    elements = torch.tensor([[1, 0, 0], [1, 0, 0]])
    samples = pack(elements, torch.tensor([[[0.0, 0, 0], [1.09, 0, 0], [0, 1.09, 0]]] * 2), 3)
    samples[1, 2, 0] = torch.nan
    found = counted(samples, elements)
    assert found.isfinite().all()
    bond = len(SYMBOLS) + BONDS.index((1, 0, 1))
    assert found[:, bond].tolist() == [2.0, 1.0]
    assert counted(samples[:0], elements[:0]).shape == (0, 60)


def test_deviations():
    values = torch.tensor([[0.0, 3.0, 0.0], [0.0, 5.0, 0.01]])
    assert deviations(values).tolist() == pytest.approx([LEAST_DEVIATION, math.sqrt(2.0), LEAST_DEVIATION])


def _padded(elements, n):
    return torch.nn.functional.pad(elements, (0, n - elements.shape[1]), value=NO_ATOM)
