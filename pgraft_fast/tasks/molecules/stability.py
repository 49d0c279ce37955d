"""Bond orders from distances, and which atoms and molecules are stable by them.

Two atoms are bonded once where they are nearer than the usual length of a single bond of their elements plus 10 pm,
twice where nearer than that of a double bond plus 5 pm, three times where nearer than that of a triple bond plus 3 pm.
An atom is stable if its orders add up to its valence, a molecule if all of its atoms are.
Source: E(3) Equivariant Diffusion Model (EDM), arXiv 2203.17003, appendix; lengths in its tables.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pgraft_fast.tasks.molecules.elements import NO_ATOM, SYMBOLS

# pm, by bond order.
LENGTHS = {
    1: {
        "HH": 74, "HC": 109, "HN": 101, "HO": 96, "HF": 92, "CC": 154, "CN": 147, "CO": 143, "CF": 135,
        "NN": 145, "NO": 140, "NF": 136, "OO": 148, "OF": 142, "FF": 142,
    },
    2: {"CC": 134, "CN": 129, "CO": 120, "NN": 125, "NO": 121, "OO": 121},
    3: {"CC": 120, "CN": 116, "CO": 113, "NN": 110},
}  # fmt: skip
MARGINS = {1: 10, 2: 5, 3: 3}
VALENCES = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
# Angstrom. What float32 cannot tell from the limit is not below it.
_RESOLUTION = 1e-6
# Angstrom. Nearer atoms are in one place: no bond, and not stable.
COINCIDENT = 0.1
_CHUNK = 1024


@dataclass(frozen=True)
class Stability:
    """orders: (B, N, N) int8, of bonds. order_sums: (B, N) int64, of the bonds of each atom, 0 where there is none.
    stable_atoms: (B, N) bool, False there. stable: (B,) bool. connected: (B,) bool, all atoms are one piece.

    broken: (B,) bool, a position that is not finite, two atoms in one place, or no atom: such a molecule is neither
    stable nor connected.
    """

    orders: Tensor
    order_sums: Tensor
    stable_atoms: Tensor
    stable: Tensor
    connected: Tensor
    broken: Tensor


def distances(elements: Tensor, positions: Tensor) -> Tensor:
    """Of all pairs, (B, N, N) float64 in angstrom; inf between an atom and itself and where there is no atom."""
    atom = elements != NO_ATOM
    points = positions.to(torch.float64).where(atom[:, :, None], 0.0)
    result = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = atom[:, :, None] & atom[:, None, :] & ~torch.eye(atom.shape[1], dtype=torch.bool, device=atom.device)
    return result.where(pairs, torch.inf)


def bond_orders(elements: Tensor, positions: Tensor) -> Tensor:
    """(B, N, N) int8, 0 to 3, symmetric. elements: (B, N) int64, -1 for no atom. positions: (B, N, 3), angstrom."""
    chunks = zip(elements.split(_CHUNK), positions.split(_CHUNK), strict=True)
    return torch.cat([_orders(part, distances(part, points)) for part, points in chunks])


def stability(elements: Tensor, positions: Tensor) -> Stability:
    """Of each atom and each molecule.

    elements: (B, N) int64, -1 for no atom. positions: (B, N, 3), angstrom.
    """
    chunks = zip(elements.split(_CHUNK), positions.split(_CHUNK), strict=True)
    parts = [_stability(part, points) for part, points in chunks]
    return Stability(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


def _stability(elements: Tensor, positions: Tensor) -> Stability:
    atom = elements != NO_ATOM
    length = distances(elements, positions)
    orders = _orders(elements, length)
    order_sums = orders.sum(dim=2, dtype=torch.int64)
    valence = torch.tensor([VALENCES[symbol] for symbol in SYMBOLS], device=elements.device)[elements.clamp(min=0)]
    finite = positions.isfinite().all(dim=2)
    whole = finite & (length >= COINCIDENT).logical_or(length.isnan()).all(dim=2)
    stable_atoms = atom & whole & (order_sums == valence)
    broken = (atom & ~whole).any(dim=1) | ~atom.any(dim=1)
    return Stability(
        orders=orders,
        order_sums=order_sums,
        stable_atoms=stable_atoms,
        stable=(stable_atoms | ~atom).all(dim=1) & ~broken,
        connected=_connected(orders, atom) & ~broken,
        broken=broken,
    )


@lru_cache(maxsize=1)
def _limits() -> Tensor:
    """(3, 25) float64, angstrom: nearer pairs of two elements have this bond order or a higher one; -inf: none has."""
    table = torch.full((3, len(SYMBOLS), len(SYMBOLS)), -torch.inf, dtype=torch.float64)
    for order, lengths in LENGTHS.items():
        for pair, length in lengths.items():
            i, j = (SYMBOLS.index(symbol) for symbol in pair)
            table[order - 1, i, j] = table[order - 1, j, i] = (length + MARGINS[order]) / 100.0 - _RESOLUTION
    return table.flatten(1)


def _orders(elements: Tensor, length: Tensor) -> Tensor:
    index = elements.clamp(min=0)
    pair = index[:, :, None] * len(SYMBOLS) + index[:, None, :]
    orders = torch.zeros_like(length, dtype=torch.int8)
    # A limit of a higher order is below that of a lower one.
    for limit in _limits().to(length.device):
        orders += length < limit[pair]
    return orders.where(length >= COINCIDENT, 0)


def _connected(orders: Tensor, atom: Tensor) -> Tensor:
    """(B,) bool. Squaring the matrix of steps doubles the length of the paths in it."""
    n = atom.shape[1]
    reached = ((orders > 0) | torch.eye(n, dtype=torch.bool, device=atom.device)).to(torch.float32)
    for _ in range(math.ceil(math.log2(max(n, 2)))):
        reached = (reached @ reached > 0).to(torch.float32)
    return ((reached > 0) | ~(atom[:, :, None] & atom[:, None, :])).flatten(1).all(dim=1)
