"""Molecules from files: xyz, and npz as EDM's preparation of QM9 writes it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.files import read_text
from pgraft_fast.tasks.molecules.elements import ATOMIC_NUMBERS, MAX_ATOMS, NO_ATOM, SYMBOLS, Molecules
from pgraft_fast.tasks.npz import array_bytes, arrays_of
from pgraft_fast.tasks.sets import filled, mask

# Angstrom, of int16 positions.
UNIT = 0.001
# Angstrom; float32 has no room for much more.
_MOST = 1e30
_ARRAYS = ("num_atoms", "charges", "positions")
_KNOWN = ", ".join(SYMBOLS)
_INDEX = {number: index for index, number in enumerate(ATOMIC_NUMBERS)}


def read_xyz(path: Path, n_max: int = MAX_ATOMS) -> Molecules:
    """All molecules of a file, one after the other: a number of atoms, a comment, lines of symbol x y z in angstrom.

    The symbol may be an atomic number; further columns are not read, nor the three lines after the atoms of QM9's own
    files, whose comments begin with "gdb". Raises InputError: file, molecule, line, what is wrong.
    """
    lines = read_text(path, "molecules").split("\n")
    molecules = []
    try:
        start = _skip_blank(lines, 0)
        while start < len(lines):
            atoms, start = _xyz_molecule(lines, start, n_max)
            molecules.append(atoms)
            start = _skip_blank(lines, start)
    except ValueError as error:
        raise InputError(f"{path}, molecule {len(molecules) + 1}, {error}") from error
    if not molecules:
        raise InputError(f"{path}: no molecule in it")
    count = torch.tensor([len(atoms) for atoms in molecules])
    rows = [atom for atoms in molecules for atom in atoms]
    elements = torch.tensor([element for element, _ in rows])
    return padded(count, elements, torch.tensor([point for _, point in rows], dtype=torch.float32))


def read_npz(path: Path, n_max: int = MAX_ATOMS) -> Molecules:
    """Arrays num_atoms (n,), charges (atomic numbers) and positions, the last two padded, (n, N) and (n, N, 3), or all
    atoms one after the other, (M,) and (M, 3). Positions are angstrom, as int16 0.001 angstrom. Others are not read.

    Raises InputError: file, molecule, what is wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: molecules cannot be read ({error.strerror})") from error
    try:
        count, numbers, positions = arrays_of(data, _ARRAYS)
    except ValueError as error:
        raise InputError(f"{path}: no npz of molecules, or damaged ({error})") from error
    try:
        return _molecules(count, numbers, positions, n_max)
    except ValueError as error:
        raise InputError(f"{path}{error}") from error


def npz_bytes(molecules: Molecules) -> bytes:
    """A file for `read_npz`: atoms one after the other, positions rounded to 0.001 angstrom; the same bytes each time.

    Raises InputError for positions beyond 32.767 angstrom or not finite.
    """
    atom = molecules.elements != NO_ATOM
    steps = (molecules.positions.to(torch.float64) / UNIT).round()[atom]
    if not bool((steps.abs() <= torch.iinfo(torch.int16).max).all()):
        raise InputError("positions are not finite or beyond 32.767 angstrom, the most that int16 holds")
    numbers = np.array(ATOMIC_NUMBERS, dtype=np.uint8)[molecules.elements[atom].numpy()]
    # By columns, which compresses better.
    positions = np.asfortranarray(steps.numpy().astype("<i2"))
    arrays = (molecules.count.numpy().astype(np.uint8), numbers, positions)
    return array_bytes(dict(zip(_ARRAYS, arrays, strict=True)))


def padded(count: Tensor, elements: Tensor, positions: Tensor, smiles: Sequence[str] = ()) -> Molecules:
    """Of atoms one after the other: count (n,), elements (M,), positions (M, 3), M the sum of all counts."""
    return Molecules(*filled(count, elements, positions), tuple(smiles))


def _skip_blank(lines: list[str], start: int) -> int:
    while start < len(lines) and not lines[start].strip():
        start += 1
    return start


def _xyz_molecule(lines: list[str], start: int, n_max: int) -> tuple[list[tuple[int, list[float]]], int]:
    """Its atoms, and the line after it."""
    text = lines[start].strip()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"line {start + 1}: {_short(text)} is no number of atoms, or the one before is too low")
    count = int(text)
    if count > n_max:
        raise ValueError(f"line {start + 1}: {count} atoms; at most {n_max} fit")
    first = start + 2
    atoms = [_xyz_atom(line, first + number + 1) for number, line in enumerate(lines[first : first + count])]
    if len(atoms) < count:
        raise ValueError(f"line {start + 1}: the file ends after {len(atoms)} of its {count} atoms")
    return atoms, first + count + (3 if lines[start + 1].startswith("gdb ") else 0)


def _xyz_atom(line: str, number: int) -> tuple[int, list[float]]:
    columns = line.split()
    if len(columns) < 4:
        raise ValueError(f"line {number}: {_short(line.strip())} is no symbol with three coordinates")
    symbol = columns[0].capitalize()
    element = _INDEX.get(int(symbol), NO_ATOM) if symbol.isdecimal() else _index_of(symbol)
    if element == NO_ATOM:
        raise ValueError(f"line {number}: element {_short(columns[0])} is unknown; known: {_KNOWN}")
    return element, [_coordinate(text, number) for text in columns[1:4]]


def _index_of(symbol: str) -> int:
    return SYMBOLS.index(symbol) if symbol in SYMBOLS else NO_ATOM


def _coordinate(text: str, number: int) -> float:
    """QM9's own files write 1.5*^-6 for 1.5e-6."""
    try:
        value = float(text.replace("*^", "e"))
    except ValueError:
        value = math.nan
    if not abs(value) <= _MOST:
        raise ValueError(f"line {number}: coordinate {_short(text)} is not a finite number")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _molecules(count: np.ndarray, numbers: np.ndarray, positions: np.ndarray, n_max: int) -> Molecules:
    if not all(array.dtype.kind in "iu" for array in (count, numbers)) or positions.dtype.kind not in "iuf":
        raise ValueError(": num_atoms and charges must be whole numbers, positions numbers")
    if count.ndim != 1 or not count.size or positions.shape != (*numbers.shape, 3) or numbers.ndim not in (1, 2):
        shapes = ", ".join(str(array.shape) for array in (count, numbers, positions))
        raise ValueError(f": shapes {shapes}; needed are (n,), (n, N), (n, N, 3) or (n,), (M,), (M, 3) with n >= 1")
    n_atoms = torch.from_numpy(count.astype(np.int64))
    low, high = int(n_atoms.argmin()), int(n_atoms.argmax())
    if int(n_atoms[low]) < 1:
        raise ValueError(f", molecule {low + 1}: {int(n_atoms[low])} atoms; at least 1 is needed")
    if int(n_atoms[high]) > n_max:
        raise ValueError(f", molecule {high + 1}: {int(n_atoms[high])} atoms; at most {n_max} fit")
    if numbers.ndim == 2:
        if numbers.shape[0] != count.size or numbers.shape[1] < int(n_atoms[high]):
            raise ValueError(f", molecule {high + 1}: {int(n_atoms[high])} atoms; charges has {numbers.shape}")
        atom = mask(n_atoms, numbers.shape[1]).numpy()
        numbers, positions = numbers[atom], positions[atom]
    if numbers.shape[0] != int(n_atoms.sum()):
        raise ValueError(f": num_atoms adds up to {int(n_atoms.sum())} atoms, charges has {numbers.shape[0]}")
    return padded(n_atoms, *_checked(n_atoms, numbers, positions))


def _checked(count: Tensor, numbers: np.ndarray, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """Elements (M,) and positions (M, 3). Raises ValueError for the first atom that is wrong."""
    unit = UNIT if positions.dtype == np.int16 else 1.0
    points = torch.from_numpy(positions.astype(np.float64) * unit)
    elements = torch.full((len(numbers),), NO_ATOM)
    for index, number in enumerate(ATOMIC_NUMBERS):
        elements[torch.from_numpy(numbers == number)] = index
    wrong = (elements == NO_ATOM) | ~(points.abs() <= _MOST).all(dim=1)
    if bool(wrong.any()):
        place = int(wrong.int().argmax())
        molecule = int((count.cumsum(0) <= place).sum())
        atom = place - int(count[:molecule].sum())
        what = f"atomic number {numbers[place]} is unknown; known: {', '.join(map(str, ATOMIC_NUMBERS))}"
        if elements[place] != NO_ATOM:
            what = "a coordinate is not a finite number"
        raise ValueError(f", molecule {molecule + 1}, atom {atom + 1}: {what}")
    return elements, points
