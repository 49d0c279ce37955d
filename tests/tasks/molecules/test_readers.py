"""Files of molecules: xyz and npz, good ones and damaged ones."""

import io

import hand_made
import numpy as np
import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.elements import NO_ATOM, Molecules
from pgraft_fast.tasks.molecules.readers import npz_bytes, read_npz, read_xyz

WATER = "3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
METHANE = "5\n\nC 0 0 0\n" + "".join(
    f"H {x} {y} {z}\n" for x, y, z in [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
)
# As in the archive of QM9's authors.
QM9 = (
    "3\ngdb 3\t799.58812\t437.90386\n"
    "O\t-0.034\t 0.977\t 7.6*^-3\t-0.589706\nH\t 0.06\t0.02\t0\t0.29\nH\t0.87\t1.3\t0\t0.29\n"
    "1671.4222\t3803.6305\t3907.698\nO\tO\nInChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
)
NO_NUMBER = "is no number of atoms, or the one before is too low"
KNOWN = "is unknown; known: 1, 6, 7, 8, 9"
SHAPES = "(n,), (n, N), (n, N, 3) or (n,), (M,), (M, 3) with n >= 1"


def written(folder, content, name="a.xyz"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def saved(folder, **arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return written(folder, buffer.getvalue(), "a.npz")


def arrays(**changed):
    """Water and hydrogen, padded, with some arrays changed or left out."""
    elements, positions = hand_made.batch(hand_made.water(), hand_made.hydrogen())
    numbers = np.array([1, 6, 7, 8, 9, 0])[elements.numpy()]
    whole = {"num_atoms": np.array([3, 2]), "charges": numbers, "positions": positions.numpy()}
    return {name: array for name, array in {**whole, **changed}.items() if array is not None}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_several_molecules_in_an_xyz(tmp_path, ends):
    text = f"\n{WATER}\n\n{METHANE}{QM9}{WATER.replace('O 0', '8 0').replace('H 0', 'h 0')}".replace("\n", ends)
    molecules = read_xyz(written(tmp_path, text))
    assert molecules.count.tolist() == [3, 5, 3, 3]
    assert molecules.elements.tolist() == [[3, 0, 0, -1, -1], [1, 0, 0, 0, 0], *[[3, 0, 0, -1, -1]] * 2]
    assert torch.allclose(molecules.positions[0, 2], torch.tensor([-0.24, 0.93, 0.0]))
    assert torch.allclose(molecules.positions[2, 0], torch.tensor([-0.034, 0.977, 0.0076]))
    assert not molecules.positions[0, 3:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": no molecule in it"),
        (f"{WATER}1\n\nSi 0 0 0\n", ", molecule 2, line 8: element 'Si' is unknown; known: H, C, N, O, F"),
        ("1\n\n14 0 0 0\n", ", molecule 1, line 3: element '14' is unknown; known: H, C, N, O, F"),
        ("1\n\nX 0 0 0\n", ", molecule 1, line 3: element 'X' is unknown; known: H, C, N, O, F"),
        ("1\n\nH 0 0\n", ", molecule 1, line 3: 'H 0 0' is no symbol with three coordinates"),
        ("1\n\nH 0 0 zero\n", ", molecule 1, line 3: coordinate 'zero' is not a finite number"),
        ("1\n\nH 0 nan 0\n", ", molecule 1, line 3: coordinate 'nan' is not a finite number"),
        ("1\n\nH 0 1e400 0\n", ", molecule 1, line 3: coordinate '1e400' is not a finite number"),
        (WATER.replace("3", "4", 1).strip(), ", molecule 1, line 1: the file ends after 3 of its 4 atoms"),
        (f"{WATER.replace('3', '4', 1)}{WATER}", ", molecule 1, line 6: '3' is no symbol with three coordinates"),
        (WATER.replace("3", "2", 1), f", molecule 2, line 5: 'H -0.24 0.93 0' {NO_NUMBER}"),
        ("0\n\n", f", molecule 1, line 1: '0' {NO_NUMBER}"),
        ("30\n\n" + "H 0 0 0\n" * 30, ", molecule 1, line 1: 30 atoms; at most 29 fit"),
        ("1", ", molecule 1, line 1: the file ends after 0 of its 1 atoms"),
    ],
)  # fmt: skip
def test_an_xyz_that_is_wrong(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_xyz(path)
    assert str(error.value) == f"{path}{message}"


def test_files_that_are_none(tmp_path):
    for read in (read_xyz, read_npz):
        with pytest.raises(InputError, match=r"molecules cannot be read \(No such file"):
            read(tmp_path / "none")
    with pytest.raises(InputError, match="UTF-16"):
        read_xyz(written(tmp_path, WATER.encode("utf-16")))


def test_an_npz_padded_and_one_atom_after_the_other(tmp_path):
    padded = arrays()
    atom = padded["charges"] > 0
    joined = {"num_atoms": padded["num_atoms"].astype(np.uint8), "charges": padded["charges"][atom]}
    steps = {"positions": (padded["positions"][atom] * 1000).round().astype(np.int16)}
    for named in (
        padded,
        {**joined, "positions": padded["positions"][atom]},
        {**joined, **steps},
        {**padded, "U0": atom},
    ):
        molecules = read_npz(saved(tmp_path, **named))
        assert molecules.elements.tolist() == [[3, 0, 0], [0, 0, NO_ATOM]]
        assert np.allclose(molecules.positions.numpy(), padded["positions"], atol=5e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"charges": None}, ": no npz of molecules, or damaged (no array charges)"),
        ({"charges": np.array([[8, 1, 1], [1, 14, 0]])}, f", molecule 2, atom 2: atomic number 14 {KNOWN}"),
        ({"charges": np.array([[8, 0, 1], [1, 1, 0]])}, f", molecule 1, atom 2: atomic number 0 {KNOWN}"),
        ({"positions": np.full((2, 3, 3), np.nan)}, ", molecule 1, atom 1: a coordinate is not a finite number"),
        ({"positions": np.full((2, 3, 3), "x")}, ": num_atoms and charges must be whole numbers, positions numbers"),
        ({"num_atoms": np.array([3.0, 2.0])}, ": num_atoms and charges must be whole numbers, positions numbers"),
        ({"num_atoms": np.array([3, 2, 1])}, ", molecule 1: 3 atoms; charges has (2, 3)"),
        ({"num_atoms": np.array([3, 4])}, ", molecule 2: 4 atoms; charges has (2, 3)"),
        ({"num_atoms": np.array([3, 0])}, ", molecule 2: 0 atoms; at least 1 is needed"),
        ({"num_atoms": np.array([30, 2])}, ", molecule 1: 30 atoms; at most 29 fit"),
        ({"charges": np.ones(4, int), "positions": np.zeros((4, 3))}, ": num_atoms adds up to 5 atoms, charges has 4"),
        ({"positions": np.zeros((2, 3, 2))}, f": shapes (2,), (2, 3), (2, 3, 2); needed are {SHAPES}"),
    ],
)  # fmt: skip
def test_an_npz_that_is_wrong(tmp_path, changed, message):
    path = saved(tmp_path, **arrays(**changed))
    with pytest.raises(InputError) as error:
        read_npz(path)
    assert str(error.value) == f"{path}{message}"


def test_a_damaged_npz_says_so_or_is_the_same(tmp_path):
    """Cut anywhere, or with one byte changed, which may be one that is not read."""
    molecules = shipped().rows(torch.arange(40))
    content = npz_bytes(molecules)
    damaged = [content[:size] for size in range(0, len(content), 17)]
    damaged += [content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :] for at in range(0, len(content), 5)]
    refused = 0
    for number, data in enumerate(damaged):
        path = written(tmp_path, data, "a.npz")
        try:
            read = read_npz(path)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}: no npz of molecules, or damaged (") and "\n" not in str(error)
            continue
        assert torch.equal(read.positions, molecules.positions[:, : read.positions.shape[1]]), number
    assert refused > 0.9 * len(damaged)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(InputError, match="no npz of molecules"):
        read_npz(tmp_path / "b.npy")


def test_what_is_written_is_read_back(tmp_path):
    molecules = shipped()
    content = npz_bytes(molecules)
    read = read_npz(written(tmp_path, content, "a.npz"))
    assert torch.equal(read.elements, molecules.elements) and torch.equal(read.positions, molecules.positions)
    assert content == npz_bytes(read)
    for value in (torch.nan, 33.0):
        with pytest.raises(InputError, match=r"not finite or beyond 32\.767 angstrom"):
            npz_bytes(Molecules(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1, 3), value)))
