"""Molecules as RDKit's graphs: validity, canonical SMILES, and what is the same molecule.

Atoms and bond orders are those of `stability`, nothing is added: an atom with a bond too few is a radical. SMILES have
no stereochemistry, so a mirrored molecule is the same one.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.extras import need
from pgraft_fast.tasks.molecules.conditions import counts
from pgraft_fast.tasks.molecules.elements import ATOMIC_NUMBERS, NO_ATOM, unpack
from pgraft_fast.tasks.molecules.stability import Stability, stability
from pgraft_fast.tasks.sets import numbers_of

SmilesOrNone = str | None


@dataclass(frozen=True)
class Graphs:
    """Canonical SMILES, n each, None where RDKit's sanitiser refuses the graph or a position is not one.

    smiles: of whole molecules, fragments joined by dots. largest: of the fragment with most atoms, judged alone.
    """

    smiles: tuple[SmilesOrNone, ...]
    largest: tuple[SmilesOrNone, ...]

    @property
    def valid(self) -> Tensor:
        """(n,) bool: the whole molecule is valid."""
        return _there(self.smiles)

    @property
    def largest_valid(self) -> Tensor:
        """(n,) bool: the largest fragment is valid. Higher than `valid`, since pieces are easier."""
        return _there(self.largest)


def graphs(elements: Tensor, positions: Tensor, judged: Stability | None = None) -> Graphs:
    """Of molecules by their geometry.

    elements: (n, N) int64, -1 for no atom. positions: (n, N, 3), angstrom. judged: their `stability`, where it is known
    already. Raises InputError without rdkit.
    """
    need("chemistry of molecules", "rdkit", extra="molecules")
    from rdkit import Chem, rdBase

    result = stability(elements, positions) if judged is None else judged
    pairs: list[tuple[SmilesOrNone, SmilesOrNone]] = []
    with rdBase.BlockLogs():
        for mol, broken in zip(_graphs(elements, result.orders), result.broken.tolist(), strict=True):
            if broken:
                pairs.append((None, None))
                continue
            fragments = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False)
            whole = _canonical(mol)
            largest = max(fragments, key=lambda fragment: fragment.GetNumAtoms())
            pairs.append((whole, whole if len(fragments) == 1 else _canonical(largest)))
    return Graphs(tuple(whole for whole, _ in pairs), tuple(largest for _, largest in pairs))


def drawable(elements: Tensor, positions: Tensor) -> list[Any]:
    """RDKit's molecules without hydrogen, for drawings; None for one that is not valid or not in one piece. Raises
    InputError without rdkit.
    """
    need("drawings of molecules", "rdkit", extra="molecules")
    from rdkit import Chem, rdBase

    judged, molecules = stability(elements, positions), []
    with rdBase.BlockLogs():
        for mol, connected in zip(_graphs(elements, judged.orders), judged.connected.tolist(), strict=True):
            valid = connected and _canonical(mol) is not None
            molecules.append(Chem.RemoveHs(mol, sanitize=False) if valid else None)
    return molecules


def same(samples: Tensor, condition: Tensor) -> Tensor:
    """Numbers that are equal for the same molecule, (n,) int64; the same in every call.

    A hash of the canonical SMILES, not negative; a molecule that is not valid is its own: -1, -2, ... in a call.
    samples: (n, N, 9). condition: (n, N) int64, see `conditions`.
    """
    smiles = graphs(*unpack(samples, counts(condition))).smiles
    return numbers_of(smiles, samples.device)


def uniqueness(smiles: Sequence[SmilesOrNone]) -> float:
    """Distinct valid ones as a share of the valid ones; nan where none is."""
    valid = [text for text in smiles if text is not None]
    return len(set(valid)) / len(valid) if valid else math.nan


def novelty(smiles: Sequence[SmilesOrNone], known: Collection[str]) -> float:
    """Share of the distinct valid ones that are not in `known`, SMILES from geometries by `graphs`; nan where none."""
    distinct = {text for text in smiles if text is not None}
    return len(distinct.difference(known)) / len(distinct) if distinct else math.nan


def distinct_per_1000(smiles: Sequence[SmilesOrNone], stable: Tensor) -> float:
    """Distinct stable molecules in 1,000 draws: the mean over whole thousands; of fewer draws scaled up.

    stable: (n,) bool. nan where n = 0.
    """
    counted = [text if kept else None for text, kept in zip(smiles, stable.tolist(), strict=True)]
    block = min(1000, len(counted))
    if not block:
        return math.nan
    starts = range(0, len(counted) - block + 1, block)
    distinct = sum(len(set(counted[start : start + block]) - {None}) for start in starts)
    return 1000.0 * distinct / (block * len(starts))


def _graphs(elements: Tensor, orders: Tensor) -> Iterator[Any]:
    """RDKit's molecules, not sanitised, in order."""
    from rdkit import Chem

    kinds: tuple[Any, ...] = (None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
    orders = orders.triu().cpu()
    row, i, j = orders.nonzero(as_tuple=True)
    bonds = torch.stack([i, j, orders[row, i, j].to(torch.int64)], dim=1).tolist()
    starts = [0, *torch.bincount(row, minlength=elements.shape[0]).cumsum(0).tolist()]
    for number, symbols in enumerate(elements.tolist()):
        mol, place = Chem.RWMol(), {}
        for slot, element in enumerate(symbols):
            if element != NO_ATOM:
                atom = Chem.Atom(ATOMIC_NUMBERS[element])
                atom.SetNoImplicit(True)
                place[slot] = mol.AddAtom(atom)
        for start, end, order in bonds[starts[number] : starts[number + 1]]:
            mol.AddBond(place[start], place[end], kinds[order])
        yield mol


def _canonical(mol: Any) -> SmilesOrNone:
    from rdkit import Chem

    try:
        if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            return None
        return Chem.MolToSmiles(Chem.RemoveHs(mol, sanitize=False), isomericSmiles=False)
    # RDKit's own errors are of both kinds.
    except (ValueError, RuntimeError):
        return None


def _there(smiles: Sequence[SmilesOrNone]) -> Tensor:
    return torch.tensor([text is not None for text in smiles], dtype=torch.bool)
