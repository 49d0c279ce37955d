"""The tensor that a model of molecules sees."""

import hand_made
import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.molecules.elements import ATOMIC_NUMBERS, MAX_ATOMS, NO_ATOM, SYMBOLS, Molecules, pack, unpack


def test_columns_of_water():
    elements, positions = hand_made.batch(hand_made.water())
    samples = pack(elements, positions)
    assert samples.shape == (1, MAX_ATOMS, 9) and samples.dtype == torch.float32
    assert samples[0, :3, :3].mean(dim=0).abs().max() < 1e-7
    assert torch.allclose((samples[0, 1, :3] - samples[0, 0, :3]).norm(), torch.tensor(0.96))
    # Oxygen is the fourth of the five.
    assert samples[0, 0, 3:].tolist() == pytest.approx([0, 0, 0, 0.25, 0, 0.8])
    assert samples[0, 1, 3:].tolist() == pytest.approx([0.25, 0, 0, 0, 0, 0.1])
    assert not samples[0, 3:].any()
    assert dict(zip(SYMBOLS, ATOMIC_NUMBERS, strict=True)) == {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


def test_unpack_reads_what_pack_wrote():
    generator = torch.Generator().manual_seed(1)
    count = torch.arange(1, MAX_ATOMS + 1)
    atom = torch.arange(MAX_ATOMS) < count[:, None]
    elements = torch.randint(5, (MAX_ATOMS, MAX_ATOMS), generator=generator).where(atom, NO_ATOM)
    positions = torch.randn(MAX_ATOMS, MAX_ATOMS, 3, generator=generator).where(atom[:, :, None], torch.nan)
    read, points = unpack(pack(elements, positions), count)
    assert torch.equal(read, elements)
    centre = positions.nan_to_num().sum(dim=1) / count[:, None]
    assert torch.allclose(points, (positions - centre[:, None]).where(atom[:, :, None], 0.0), atol=1e-5)
    assert torch.equal(Molecules(elements, positions).count, count)


def test_what_is_beyond_the_count_is_not_read():
    samples = pack(*hand_made.batch(hand_made.methane(), hand_made.water()))
    samples[1, 3:] = torch.nan
    elements, positions = unpack(samples, torch.tensor([5, 3]))
    assert elements[1].tolist() == [3, 0, 0, *[NO_ATOM] * 26] and not positions[1, 3:].any()
    assert positions.isfinite().all()


@pytest.mark.parametrize("column", range(9))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_atom_with_a_number_that_is_none_has_no_position(column, value):
    samples = pack(*hand_made.batch(hand_made.water()))
    samples[0, 1, column] = value
    _, positions = unpack(samples, torch.tensor([3]))
    assert positions[0].isnan().all(dim=1).nonzero().tolist() == [[1]]


def test_what_does_not_fit():
    elements, positions = hand_made.batch(hand_made.water(), hand_made.benzene(True))
    with pytest.raises(InputError, match=r"^molecule 1 has 12 atoms; at most 11 fit$"):
        pack(elements, positions, 11)
    assert pack(elements, positions, 12).shape == (2, 12, 9)
    for samples, count in ((torch.zeros(2, 5, 8), torch.ones(2)), (torch.zeros(2, 5, 9), torch.ones(3))):
        with pytest.raises(InputError, match=r"\(B, N, 9\) with \(B,\) are needed"):
            unpack(samples, count)
    assert pack(torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 4, 3)).shape == (0, MAX_ATOMS, 9)
