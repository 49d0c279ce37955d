"""Molecules of hydrogen, carbon, nitrogen, oxygen and fluorine as tensors.

A batch is elements (B, N) int64, a number of SYMBOLS or -1 where there is no atom, and positions (B, N, 3) in angstrom.
A diffusion model sees one float tensor (B, N_max, 9), see `pack`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.sets import NONE, mask

SYMBOLS = ("H", "C", "N", "O", "F")
ATOMIC_NUMBERS = (1, 6, 7, 8, 9)
# Of QM9.
MAX_ATOMS = 29
WIDTH = 3 + len(SYMBOLS) + 1
NO_ATOM = NONE
# EDM's scales of the columns (arXiv 2203.17003, section 4).
_ONE_HOT_SCALE, _NUMBER_SCALE = 4.0, 10.0


@dataclass(frozen=True)
class Molecules:
    """elements: (n, N) int64, -1 where there is no atom. positions: (n, N, 3) float32, angstrom, 0 there.

    smiles: n texts of whoever made the set, or none.
    """

    elements: Tensor
    positions: Tensor
    smiles: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.elements.shape[0]

    @property
    def count(self) -> Tensor:
        """Numbers of atoms, (n,) int64."""
        return (self.elements != NO_ATOM).sum(dim=1)

    def rows(self, rows: Tensor) -> "Molecules":
        """Some of them, by their numbers (m,) int64."""
        smiles = tuple(self.smiles[row] for row in rows.tolist()) if self.smiles else ()
        return Molecules(self.elements[rows], self.positions[rows], smiles)


def pack(elements: Tensor, positions: Tensor, n_max: int = MAX_ATOMS) -> Tensor:
    """One float32 tensor (B, n_max, 9): position minus the mean of the molecule's, one-hot / 4, atomic number / 10.

    elements: (B, N) int64, -1 after the last atom of each. positions: (B, N, 3), angstrom. Rows without an atom are 0.
    Raises InputError for a molecule of more than n_max atoms.
    """
    count = (elements != NO_ATOM).sum(dim=1)
    if count.numel() and int(count.max()) > n_max:
        raise InputError(f"molecule {int(count.argmax())} has {int(count.max())} atoms; at most {n_max} fit")
    atom = (elements != NO_ATOM)[:, :, None]
    centre = positions.where(atom, 0.0).sum(dim=1) / count.clamp(min=1)[:, None]
    columns = (positions - centre[:, None], columns_of_elements().to(elements.device)[elements.clamp(min=0)])
    rows = torch.cat([column.to(torch.float32) for column in columns], dim=2).where(atom, 0.0)[:, :n_max]
    return torch.nn.functional.pad(rows, (0, 0, 0, n_max - rows.shape[1]))


def columns_of_elements() -> Tensor:
    """The last columns of each element's atoms: (5, 6) float32, one-hot / 4, atomic number / 10."""
    one_hot = torch.eye(len(SYMBOLS)) / _ONE_HOT_SCALE
    return torch.cat((one_hot, torch.tensor(ATOMIC_NUMBERS)[:, None] / _NUMBER_SCALE), dim=1)


def unpack(samples: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Elements (B, N) int64 and positions (B, N, 3) of samples (B, N, 9) of which the first `count` rows are atoms.

    The element is the largest of the one-hot's five; the atomic number is not read. An atom with a number that is not
    finite has the position nan. count: (B,) integers.
    """
    if samples.ndim != 3 or samples.shape[2] != WIDTH or count.shape != samples.shape[:1]:
        raise InputError(
            f"samples {tuple(samples.shape)} with counts {tuple(count.shape)}; (B, N, {WIDTH}) with (B,) are needed"
        )
    atom = mask(count.to(samples.device), samples.shape[1])
    elements = samples[:, :, 3 : 3 + len(SYMBOLS)].argmax(dim=2).where(atom, NO_ATOM)
    finite = samples.isfinite().all(dim=2, keepdim=True)
    return elements, samples[:, :, :3].where(finite, torch.nan).where(atom[:, :, None], 0.0)
