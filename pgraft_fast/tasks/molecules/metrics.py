"""What generated molecules are measured by, beside a reference set."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from pgraft_fast.tasks.molecules.elements import NO_ATOM, SYMBOLS
from pgraft_fast.tasks.molecules.graphs import distinct_per_1000, graphs, novelty, uniqueness
from pgraft_fast.tasks.molecules.stability import bond_orders, distances, stability

_CHUNK = 256


@dataclass(frozen=True)
class Geometry:
    """lengths: angstrom, of bonded atoms, by pair of elements in the order of SYMBOLS ("HC"). angles: degrees, between
    two bonds of one atom.
    """

    lengths: dict[str, np.ndarray]
    angles: np.ndarray


@dataclass(frozen=True)
class Reference:
    """A set to measure against: its SMILES by `graphs`, its lengths and angles."""

    smiles: frozenset[str]
    geometry: Geometry


@dataclass(frozen=True)
class MoleculeMetrics:
    """Percentages of all molecules, where nothing else is said; nan where there is nothing to take the share of.

    atom_stability: % of all atoms. valid: whole molecules, largest_valid: largest fragments alone. unique: distinct
    SMILES, % of valid. novel: % of these distinct ones that the reference lacks. distinct_stable_per_1000: a number.
    length_distance: Wasserstein-1 in angstrom by pair of elements, of pairs that both sets have; mean_length_distance:
    weighted by the bonds in the reference, nan where samples lack all. angle_distance: Wasserstein-1 in degrees.
    """

    atom_stability: float
    molecule_stability: float
    connected: float
    stable_connected: float
    valid: float
    largest_valid: float
    unique: float
    novel: float
    distinct_stable_per_1000: float
    length_distance: dict[str, float]
    mean_length_distance: float
    angle_distance: float


def reference(elements: Tensor, positions: Tensor) -> Reference:
    """Of a data set: elements (n, N) int64, -1 for no atom, positions (n, N, 3), angstrom. Raises InputError without
    rdkit.
    """
    smiles = frozenset(text for text in graphs(elements, positions).smiles if text is not None)
    return Reference(smiles, geometry(elements, positions))


def measure(elements: Tensor, positions: Tensor, data: Reference) -> MoleculeMetrics:
    """Of n molecules, all figures. elements, positions: as of `reference`. Raises InputError without rdkit."""
    result, chemistry, shape = (
        stability(elements, positions),
        graphs(elements, positions),
        geometry(elements, positions),
    )
    atom = elements != NO_ATOM
    lengths, mean_length = _length_distances(shape, data.geometry)
    return MoleculeMetrics(
        atom_stability=_percent(result.stable_atoms[atom]),
        molecule_stability=_percent(result.stable),
        connected=_percent(result.connected),
        stable_connected=_percent(result.stable & result.connected),
        valid=_percent(chemistry.valid),
        largest_valid=_percent(chemistry.largest_valid),
        unique=100.0 * uniqueness(chemistry.smiles),
        novel=100.0 * novelty(chemistry.smiles, data.smiles),
        distinct_stable_per_1000=distinct_per_1000(chemistry.smiles, result.stable),
        length_distance=lengths,
        mean_length_distance=mean_length,
        angle_distance=_distance(shape.angles, data.geometry.angles),
    )


def geometry(elements: Tensor, positions: Tensor) -> Geometry:
    """Lengths and angles of all bonds of n molecules."""
    lengths: dict[str, list[Tensor]] = {a + b: [] for i, a in enumerate(SYMBOLS) for b in SYMBOLS[i:]}
    angles = [torch.empty(0, dtype=torch.float64)]
    for kinds, points in zip(elements.split(_CHUNK), positions.to(torch.float64).split(_CHUNK), strict=True):
        bonded = bond_orders(kinds, points) > 0
        row, i, j = bonded.triu().nonzero(as_tuple=True)
        pair = torch.stack([kinds[row, i], kinds[row, j]])
        low, high, length = pair.amin(dim=0), pair.amax(dim=0), distances(kinds, points)[row, i, j]
        for name, parts in lengths.items():
            first, second = (SYMBOLS.index(symbol) for symbol in name)
            parts.append(length[(low == first) & (high == second)].cpu())
        angles.append(_angles(bonded, points).cpu())
    joined = {name: torch.cat(parts).numpy() for name, parts in lengths.items() if parts}
    return Geometry({name: values for name, values in joined.items() if values.size}, torch.cat(angles).numpy())


def _angles(bonded: Tensor, points: Tensor) -> Tensor:
    """(k,) degrees, in [0, 180], one for each two bonds of an atom."""
    both = (bonded[:, :, :, None] & bonded[:, :, None, :]).triu(diagonal=1)
    row, middle, i, j = both.nonzero(as_tuple=True)
    left, right = (points[row, end] - points[row, middle] for end in (i, j))
    # Of a cross and a dot product, since an arc cosine is inexact near 0 and 180 degrees.
    return torch.rad2deg(torch.atan2(torch.linalg.cross(left, right).norm(dim=1), (left * right).sum(dim=1)))


def _length_distances(samples: Geometry, data: Geometry) -> tuple[dict[str, float], float]:
    shared = {
        name: _distance(samples.lengths[name], values)
        for name, values in data.lengths.items()
        if name in samples.lengths
    }
    weights = [data.lengths[name].size for name in shared]
    return shared, float(np.average(list(shared.values()), weights=weights)) if shared else math.nan


def _distance(samples: np.ndarray, data: np.ndarray) -> float:
    return float(wasserstein_distance(samples, data)) if samples.size and data.size else math.nan


def _percent(values: Tensor) -> float:
    return 100.0 * float(values.to(torch.float64).mean()) if values.numel() else math.nan
