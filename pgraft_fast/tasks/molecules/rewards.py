"""Rewards of molecules: (samples, condition) -> (B,) float32.

samples: (B, N, 9), see `elements.pack`. condition: (B, N) int64, see `conditions`. What is not finite has 0.
"""

import torch
from torch import Tensor

from pgraft_fast.tasks.molecules.conditions import counts
from pgraft_fast.tasks.molecules.elements import unpack
from pgraft_fast.tasks.molecules.graphs import graphs
from pgraft_fast.tasks.molecules.stability import stability


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
