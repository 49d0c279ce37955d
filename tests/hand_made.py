"""Molecules with the geometry of a textbook: elements (n,) int64 and positions (n, 3) float64 in angstrom."""

import math

import torch
from torch import Tensor

from pgraft_fast.tasks.molecules.elements import NO_ATOM, SYMBOLS

# Of the two kinds of bonds in benzene as the tables draw it.
SHORT, LONG, RADIUS = 1.34, 1.4595, 1.4

Atoms = tuple[Tensor, Tensor]


def atoms(symbols: str, positions: list[tuple[float, float, float]]) -> Atoms:
    return torch.tensor([SYMBOLS.index(symbol) for symbol in symbols]), torch.tensor(positions, dtype=torch.float64)


def hydrogen() -> Atoms:
    return atoms("HH", [(0, 0, 0), (0.74, 0, 0)])


def water(bond: float = 0.96, angle: float = 104.5) -> Atoms:
    turn = math.radians(angle)
    return atoms("OHH", [(0, 0, 0), (bond, 0, 0), (bond * math.cos(turn), bond * math.sin(turn), 0)])


def methane(bond: float = 1.09) -> Atoms:
    a = bond / math.sqrt(3.0)
    return atoms("CHHHH", [(0, 0, 0), (a, a, a), (a, -a, -a), (-a, a, -a), (-a, -a, a)])


def methyl() -> Atoms:
    elements, positions = methane()
    return elements[:4], positions[:4]


def carbon_dioxide() -> Atoms:
    return atoms("OCO", [(-1.16, 0, 0), (0, 0, 0), (1.16, 0, 0)])


def hydrogen_cyanide() -> Atoms:
    return atoms("HCN", [(-1.07, 0, 0), (0, 0, 0), (1.15, 0, 0)])


def benzene(alternating: bool) -> Atoms:
    """C-C bonds of 1.34 and 1.46 in turn, or all 1.3946 as QM9 has them; C-H 1.09."""
    radius = RADIUS if alternating else 1.3946
    step = 2.0 * math.asin(SHORT / (2.0 * radius)) if alternating else math.pi / 3.0
    turns = [pair * 2.0 * math.pi / 3.0 + half * step for pair in range(3) for half in (0, 1)]
    ring = [(radius * math.cos(turn), radius * math.sin(turn), 0.0) for turn in turns]
    outer = [tuple((radius + 1.09) / radius * value for value in point) for point in ring]
    return atoms("CCCCCCHHHHHH", ring + outer)  # type: ignore[arg-type]


def together(*parts: Atoms, apart: float = 10.0) -> Atoms:
    """One molecule of several pieces, beside each other."""
    shift = torch.tensor([apart, 0.0, 0.0], dtype=torch.float64)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] + n * shift for n, part in enumerate(parts)])


def batch(*molecules: Atoms, n_max: int | None = None) -> Atoms:
    """(B, N) and (B, N, 3): the molecules, padded to the largest or to n_max."""
    n = max(part[0].numel() for part in molecules) if n_max is None else n_max
    elements = torch.full((len(molecules), n), NO_ATOM)
    positions = torch.zeros(len(molecules), n, 3, dtype=torch.float64)
    for row, (kinds, points) in enumerate(molecules):
        elements[row, : kinds.numel()], positions[row, : kinds.numel()] = kinds, points
    return elements, positions
