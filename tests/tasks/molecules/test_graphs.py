"""Graphs of molecules: validity, SMILES, what is the same."""

import importlib.util
import math

import hand_made
import pytest
import torch

pytest.importorskip("rdkit")

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.molecules.conditions import condition_of
from pgraft_fast.tasks.molecules.data import qm9, shipped, small_molecules
from pgraft_fast.tasks.molecules.elements import MAX_ATOMS, NO_ATOM, pack
from pgraft_fast.tasks.molecules.graphs import distinct_per_1000, graphs, novelty, same, uniqueness
from pgraft_fast.tasks.molecules.stability import stability


@pytest.mark.parametrize(
    ("atoms", "smiles"),
    [
        (hand_made.hydrogen(), "[H][H]"),
        (hand_made.water(), "O"),
        (hand_made.methane(), "C"),
        (hand_made.methyl(), "[CH3]"),
        (hand_made.carbon_dioxide(), "O=C=O"),
        (hand_made.hydrogen_cyanide(), "C#N"),
        (hand_made.benzene(True), "c1ccccc1"),
        # As the tables draw the real one, see test_stability.
        (hand_made.benzene(False), "[CH]1[CH][CH][CH][CH][CH]1"),
        (hand_made.together(hand_made.water(), hand_made.methane()), "C.O"),
        (hand_made.atoms("C", [(0, 0, 0)]), "[C]"),
        (hand_made.atoms("H", [(0, 0, 0)]), "[H]"),
    ],
)
def test_smiles_of_molecules_made_by_hand(atoms, smiles):
    assert graphs(*hand_made.batch(atoms)).smiles == (smiles,)
    assert graphs(*hand_made.batch(atoms, n_max=MAX_ATOMS)).smiles == (smiles,)


def too_many(symbols="C"):
    """An atom with six hydrogen atoms around it."""
    axes = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return hand_made.atoms(symbols + "HHHHHH", [(0, 0, 0), *axes])


def test_whole_molecule_and_largest_fragment():
    """A valid piece beside a smaller one that is not, and the other way round."""
    smaller = hand_made.together(hand_made.benzene(True), too_many())
    larger = hand_made.together(hand_made.water(), too_many())
    result = graphs(*hand_made.batch(smaller, larger, hand_made.together(hand_made.water(), hand_made.methane())))
    assert result.valid.tolist() == [False, False, True] and result.largest_valid.tolist() == [True, False, True]
    assert result.largest == ("c1ccccc1", None, "C")


def test_no_graph_for_atoms_that_are_nowhere_or_in_one_place():
    elements, positions = hand_made.batch(*[hand_made.water()] * 4)
    positions[0, 1, 0], positions[1, 2, 1], positions[2, 1] = torch.nan, torch.inf, positions[2, 2]
    assert graphs(elements, positions).smiles == (None, None, None, "O")
    assert graphs(torch.full((1, 3), NO_ATOM), torch.zeros(1, 3, 3)).smiles == (None,)
    assert graphs(elements[:0], positions[:0]).valid.shape == (0,)


def test_no_crash_and_nothing_on_stderr(capfd):
    generator = torch.Generator().manual_seed(5)
    for scale in (0.01, 0.3, 0.7, 1.0, 1.5, 3.0, 1e20):
        elements = torch.randint(-1, 5, (40, MAX_ATOMS), generator=generator)
        positions = torch.randn(40, MAX_ATOMS, 3, generator=generator) * scale
        positions[::9, 3, 1] = torch.nan
        result = graphs(elements, positions)
        assert len(result.smiles) == len(result.largest) == 40
        assert not result.valid[::9][elements[::9, 3] != NO_ATOM].any()
    graphs(*hand_made.batch(*(too_many(symbol) for symbol in "HCNOF")))
    assert capfd.readouterr() == ("", "")


def test_the_same_molecule_has_the_same_number():
    generator = torch.Generator().manual_seed(6)
    molecules = shipped().rows(torch.arange(0, 3921, 100))
    numbers = same(pack(molecules.elements, molecules.positions, 23), molecules.elements)
    distinct = {text for text in graphs(molecules.elements, molecules.positions).smiles if text is not None}
    assert len(numbers[numbers >= 0].unique()) == len(distinct) > 30 and numbers.dtype == torch.int64
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    for row in range(len(molecules)):
        n = int(molecules.count[row])
        order = torch.randperm(n, generator=generator)
        # Turned, perhaps mirrored, moved, in another order.
        elements, positions = molecules.elements[row, order], molecules.positions[row, order] @ q + 2.0
        number = same(pack(elements[None], positions[None]), condition_of([f"{n} atoms"]))
        assert int(number) == (int(numbers[row]) if numbers[row] >= 0 else -1)


def test_what_is_not_valid_is_its_own():
    made = [hand_made.water(), too_many(), too_many(), hand_made.water(0.97), hand_made.methane()]
    numbers = same(pack(*hand_made.batch(*made)), condition_of([f"{n} atoms" for n in (3, 7, 7, 3, 5)])).tolist()
    assert numbers[0] == numbers[3] >= 0 and numbers[4] >= 0 and len(set(numbers)) == 4
    assert numbers[1:3] == [-2, -3]


def test_shares_of_smiles():
    smiles = ["C", None, "O", "C", "N", None]
    assert uniqueness(smiles) == 3 / 4 and novelty(smiles, {"C", "CC"}) == 2 / 3
    assert math.isnan(uniqueness([None])) and math.isnan(novelty([], {"C"}))
    stable = torch.tensor([True, True, True, True, False, True])
    assert distinct_per_1000(smiles, stable) == pytest.approx(2000 / 6)
    assert math.isnan(distinct_per_1000([], torch.empty(0, dtype=torch.bool)))


def test_distinct_ones_are_counted_by_thousands():
    """The third, which is not whole, does not count."""
    smiles = [f"a{number % 100}" for number in range(1000)] + [f"a{number}" for number in range(1000)] + ["b", "c"]
    assert distinct_per_1000(smiles, torch.ones(2002, dtype=torch.bool)) == (100 + 1000) / 2


def test_the_shipped_molecules():
    result = graphs(shipped().elements, shipped().positions)
    assert int(result.valid.sum()) == 3818 and int(result.largest_valid.sum()) == 3818
    assert len(set(result.smiles) - {None}) == 3818


def test_without_rdkit(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "rdkit" else find_spec(name))
    with pytest.raises(InputError, match=r" rdkit, not installed: pip install 'pgraft-fast\[molecules\]'$"):
        graphs(*hand_made.batch(hand_made.water()))


@pytest.mark.skipif(importlib.util.find_spec("qm9pack") is None, reason="qm9pack is not installed")
@pytest.mark.slow
def test_smiles_from_geometries_are_those_of_the_authors():
    """Of those that are stable, 3,757 of 3,921; the others have charges, or bonds that the tables draw otherwise."""
    from rdkit import Chem

    molecules = small_molecules(qm9())
    theirs = [Chem.MolToSmiles(Chem.MolFromSmiles(text), isomericSmiles=False) for text in molecules.smiles]
    ours = graphs(molecules.elements, molecules.positions).smiles
    stable = stability(molecules.elements, molecules.positions).stable
    agree = torch.tensor([a == b for a, b in zip(ours, theirs, strict=True)])
    assert torch.equal(agree, stable) and int(agree.sum()) == 3757
