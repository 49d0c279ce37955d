"""Rewards of molecules, on ones made by hand."""

import hand_made
import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.molecules import rewards
from pgraft_fast.tasks.molecules.conditions import condition_of
from pgraft_fast.tasks.molecules.elements import NO_ATOM, pack

MADE = {
    "methane": hand_made.methane(),
    "methyl": hand_made.methyl(),
    "water and methane": hand_made.together(hand_made.water(), hand_made.methane()),
    "benzene": hand_made.benzene(False),
    "carbon": hand_made.atoms("C", [(0, 0, 0)]),
    # Its oxygen has one bond too many.
    "OH3": hand_made.atoms("OHHH", [(0, 0, 0), (0.96, 0, 0), (-0.96, 0, 0), (0, 0.96, 0)]),
    "nan": hand_made.water(),
    "in one place": hand_made.hydrogen(),
}
EXPECTED = {
    "stable": [1, 0, 1, 0, 0, 0, 0, 0],
    "stable_connected": [1, 0, 0, 0, 0, 0, 0, 0],
    # The hydrogen atom that stays where it was still has its bond.
    "share_of_stable_atoms": [1, 3 / 4, 1, 6 / 12, 0, 3 / 4, 1 / 3, 0],
    "valid": [1, 1, 1, 1, 1, 0, 0, 0],
}


def samples():
    count = [atoms[0].numel() for atoms in MADE.values()]
    packed = pack(*hand_made.batch(*MADE.values()))
    packed[6, 1, 4] = torch.nan
    packed[7, 1] = packed[7, 0]
    return packed, condition_of([f"{n} atoms" for n in count])


@pytest.mark.parametrize("name", EXPECTED)
def test_rewards_of_molecules_made_by_hand(name):
    if name == "valid":
        pytest.importorskip("rdkit")
    values = getattr(rewards, name)(*samples())
    assert values.dtype == torch.float32 and values.tolist() == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_padding_and_neighbours_change_no_reward(name):
    if name == "valid":
        pytest.importorskip("rdkit")
    packed, condition = samples()
    reward = getattr(rewards, name)
    for row, atoms in enumerate(MADE.values()):
        count = atoms[0].numel()
        alone = torch.full((1, 40, 9), torch.nan)
        alone[0, :count] = packed[row, :count]
        assert reward(alone, condition_of([f"{count} atoms"], 40)).item() == pytest.approx(EXPECTED[name][row])
    assert reward(packed[:0], condition[:0]).shape == (0,)


def test_no_atom_has_no_reward():
    for name in ("stable", "stable_connected", "share_of_stable_atoms"):
        assert getattr(rewards, name)(torch.zeros(1, 5, 9), torch.full((1, 5), NO_ATOM)).tolist() == [0.0]


def test_counts_of_another_number_of_samples():
    with pytest.raises(InputError, match="are needed"):
        rewards.stable(torch.zeros(2, 5, 9), condition_of(["3 atoms"], 5))
