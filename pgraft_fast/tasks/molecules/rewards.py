"""Rewards of molecules: (samples, condition) -> (B,) float32.

samples: (B, N, 9), see `elements.pack`. condition: (B, N) int64, see `conditions`. What is not finite has 0.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.extras import need
from pgraft_fast.tasks.molecules.conditions import counts
from pgraft_fast.tasks.molecules.elements import ATOMIC_NUMBERS, unpack
from pgraft_fast.tasks.molecules.graphs import graphs
from pgraft_fast.tasks.molecules.stability import stability

_BOHR = 0.529177210544


def stable(samples: Tensor, condition: Tensor) -> Tensor:
    """1 where every atom has its valence, else 0."""
    return stability(*unpack(samples, counts(condition))).stable.to(torch.float32)


def stable_connected(samples: Tensor, condition: Tensor) -> Tensor:
    """1 where every atom has its valence and all are one piece, else 0."""
    result = stability(*unpack(samples, counts(condition)))
    return (result.stable & result.connected).to(torch.float32)


def share_of_stable_atoms(samples: Tensor, condition: Tensor) -> Tensor:
    """Atoms that have their valence as a share of all, in [0, 1]; 0 for no atom."""
    elements, positions = unpack(samples, counts(condition))
    atoms = (elements >= 0).sum(dim=1).clamp(min=1)
    return stability(elements, positions).stable_atoms.sum(dim=1).to(torch.float32) / atoms


def valid(samples: Tensor, condition: Tensor) -> Tensor:
    """1 where RDKit's sanitiser takes the whole molecule, else 0. Raises InputError without rdkit."""
    return graphs(*unpack(samples, counts(condition))).valid.to(torch.float32).to(samples.device)


def gfn2(samples: Tensor, condition: Tensor) -> Tensor:
    """Minus the energy an atom in hartree by GFN2-xTB, without charge; nan where it is not found or no energy of one.

    Compare molecules of one formula alone: each element adds an energy of its own. Raises InputError without tblite.
    Source: Bannwarth et al., J. Chem. Theory Comput. 15, 1652, 2019.
    """
    need("the energy of molecules", "tblite", extra="xtb")
    elements, positions = unpack(samples, counts(condition))
    rows = zip(elements.cpu().numpy(), positions.cpu().to(torch.float64).numpy(), strict=True)
    energies = [_energy_an_atom(kinds[kinds >= 0], points[kinds >= 0]) for kinds, points in rows]
    return -torch.tensor(energies, dtype=torch.float32, device=samples.device)


def _energy_an_atom(kinds: np.ndarray, points: np.ndarray) -> float:
    """Hartree, of elements (n,) and positions (n, 3) in angstrom."""
    from tblite.interface import Calculator

    if not kinds.size or not np.isfinite(points).all():
        return math.nan
    try:
        calculator = Calculator("GFN2-xTB", np.array(ATOMIC_NUMBERS)[kinds], points / _BOHR)
        calculator.set("verbosity", 0)
        return float(calculator.singlepoint().get("energy")) / kinds.size
    # It says so in each of these where the electrons do not settle.
    except (RuntimeError, ValueError):
        return math.nan
