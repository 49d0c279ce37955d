"""Figures of generated molecules, by hand and by closed forms."""

import math

import hand_made
import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.metrics import geometry, measure, reference
from pgraft_fast.tasks.molecules.stability import bond_orders


def test_figures_of_molecules_made_by_hand():
    made = [
        hand_made.water(), hand_made.water(), hand_made.methyl(), hand_made.benzene(False),
        hand_made.together(hand_made.water(), hand_made.methane()),
        hand_made.atoms("OHHH", [(0, 0, 0), (0.96, 0, 0), (-0.96, 0, 0), (0, 0.96, 0)]),
    ]  # fmt: skip
    data = reference(*hand_made.batch(hand_made.water(), hand_made.carbon_dioxide()))
    figures = measure(*hand_made.batch(*made), data)
    assert figures.atom_stability == pytest.approx(100 * (3 + 3 + 3 + 6 + 8 + 3) / (3 + 3 + 4 + 12 + 8 + 4))
    assert figures.molecule_stability == pytest.approx(100 * 3 / 6)
    assert figures.connected == pytest.approx(100 * 5 / 6) and figures.stable_connected == pytest.approx(100 * 2 / 6)
    assert figures.valid == figures.largest_valid == pytest.approx(100 * 5 / 6)
    # Water, the methyl, benzene as it is drawn, and the pair; water is known.
    assert figures.unique == pytest.approx(100 * 4 / 5) and figures.novel == pytest.approx(100 * 3 / 4)
    assert figures.distinct_stable_per_1000 == pytest.approx(1000 * 2 / 6)
    # Of the pairs in the data H-O alone is there.
    assert figures.length_distance == {"HO": pytest.approx(0.0, abs=1e-12)} and figures.mean_length_distance < 1e-12


@pytest.mark.parametrize(
    ("atoms", "angles"),
    [
        (hand_made.water(), [104.5]),
        (hand_made.methane(), [math.degrees(math.acos(-1 / 3))] * 6),
        (hand_made.carbon_dioxide(), [180.0]),
        (hand_made.benzene(False), [120.0] * 18),
        (hand_made.hydrogen(), []),
        (hand_made.together(hand_made.water(), hand_made.water(angle=100.0)), [104.5, 100.0]),
    ],
)
def test_angles(atoms, angles):
    measured = geometry(*hand_made.batch(atoms, n_max=20)).angles
    assert measured.shape == (len(angles),) and np.allclose(measured, angles, atol=1e-6)


def test_lengths_by_pair():
    made = hand_made.batch(hand_made.methane(1.1), hand_made.hydrogen_cyanide(), hand_made.hydrogen())
    lengths = {name: values.tolist() for name, values in geometry(*made).lengths.items()}
    assert lengths == {
        "HH": pytest.approx([0.74]), "HC": pytest.approx([1.1] * 4 + [1.07]), "CN": pytest.approx([1.15])
    }  # fmt: skip


def test_distances_of_stretched_molecules():
    """W1 of lengths times 1 + e is e times their mean; angles stay."""
    molecules = shipped().rows(torch.arange(0, 600, 4))
    elements, positions = molecules.elements, molecules.positions.to(torch.float64)
    data = reference(elements, positions)
    itself = measure(elements, positions, data)
    assert itself.mean_length_distance == itself.angle_distance == 0.0 and itself.novel == 0.0
    stretched = positions * 1.0005
    assert torch.equal(bond_orders(elements, stretched) > 0, bond_orders(elements, positions) > 0)
    figures = measure(elements, stretched, data)
    lengths = data.geometry.lengths
    assert figures.length_distance == {name: pytest.approx(5e-4 * x.mean()) for name, x in lengths.items()}
    everything = np.concatenate(list(lengths.values()))
    assert figures.mean_length_distance == pytest.approx(5e-4 * everything.mean()) and figures.angle_distance < 1e-9


def test_water_that_is_bent_otherwise():
    figures = measure(
        *hand_made.batch(hand_made.water(0.98, 100.0)), reference(*hand_made.batch(hand_made.water(0.96, 104.5)))
    )
    assert figures.length_distance == {"HO": pytest.approx(0.02)} and figures.angle_distance == pytest.approx(4.5)


def test_figures_of_what_is_nothing():
    """Atoms that are nowhere have shares of 0 and no distances; of no molecule there are none at all."""
    data = reference(*hand_made.batch(hand_made.water()))
    elements, positions = hand_made.batch(hand_made.water(), hand_made.methane())
    figures = measure(elements, torch.full_like(positions, torch.nan), data)
    assert figures.molecule_stability == figures.valid == figures.distinct_stable_per_1000 == 0.0
    assert (
        math.isnan(figures.unique) and math.isnan(figures.mean_length_distance) and math.isnan(figures.angle_distance)
    )
    figures = measure(elements[:0], positions[:0], data)
    assert figures.length_distance == {} and all(
        math.isnan(value) for name, value in vars(figures).items() if name != "length_distance"
    )


def test_padding_changes_no_figure():
    molecules = shipped().rows(torch.arange(0, 3921, 60))
    data = reference(shipped().elements[:500], shipped().positions[:500])
    figures = measure(molecules.elements, molecules.positions, data)
    elements = torch.nn.functional.pad(molecules.elements, (0, 6), value=-1)
    positions = torch.nn.functional.pad(molecules.positions, (0, 0, 0, 6), value=torch.nan)
    assert measure(elements, positions, data) == figures
