"""The space of the Frechet distance between sets of molecules: numbers that are counted, nothing is learned.

Of a molecule, in this order:

- atoms of each element of SYMBOLS;
- bonds by their order and pair of elements, as `stability` has them, 25 kinds;
- of the pairs hydrogen and hydrogen, hydrogen and a heavier atom, two heavier atoms: a smooth histogram of distances,
  sum over pairs of exp(-(d - c)^2 / (2 w^2)) at centres c that are 2 w apart.

Each is divided by its standard deviation over the data, or by 0.1 where that is less: what is rare in the data stays
small.
"""

import torch
from torch import Tensor

from pgraft_fast.tasks.molecules.conditions import counts
from pgraft_fast.tasks.molecules.elements import NO_ATOM, SYMBOLS, unpack
from pgraft_fast.tasks.molecules.stability import LENGTHS, bond_orders, distances

# Angstrom: centres and width of the histograms.
CENTRES = tuple(0.75 + 0.5 * place for place in range(10))
WIDTH = 0.25
LEAST_DEVIATION = 0.1
# (order, element, element), elements as numbers, the lower one first.
BONDS = tuple(
    (order, *sorted(SYMBOLS.index(symbol) for symbol in pair)) for order, pairs in LENGTHS.items() for pair in pairs
)
_CHUNK = 1024


def counted(samples: Tensor, condition: Tensor) -> Tensor:
    """(n, 60) float32, not yet divided, of samples (n, N, 9) with their condition (n, N).

    A position that is not finite has no distance and no bond.
    """
    elements, positions = unpack(samples, counts(condition))
    parts = zip(elements.split(_CHUNK), positions.split(_CHUNK), strict=True)
    return torch.cat([_counted(kinds, points) for kinds, points in parts])


def deviations(values: Tensor) -> Tensor:
    """What the features of a data set (m, 60) are divided by, (60,) float32."""
    return values.std(dim=0).clamp(min=LEAST_DEVIATION)


def _counted(elements: Tensor, positions: Tensor) -> Tensor:
    size = elements.shape[1]
    atoms = (elements[:, :, None] == torch.arange(len(SYMBOLS), device=elements.device)).sum(dim=1)
    i, j = torch.triu_indices(size, size, 1, device=elements.device)
    first, second = elements[:, i], elements[:, j]
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    there = low != NO_ATOM
    kind = (bond_orders(elements, positions)[:, i, j] * len(SYMBOLS) + low) * len(SYMBOLS) + high
    bonds = _sums(kind.where(there, 0), torch.ones_like(kind, dtype=torch.float32)[..., None], 4 * len(SYMBOLS) ** 2)
    chosen = [(order * len(SYMBOLS) + element) * len(SYMBOLS) + other for order, element, other in BONDS]
    length = distances(elements, positions)[:, i, j].nan_to_num(nan=torch.inf)
    centres = torch.tensor(CENTRES, dtype=length.dtype, device=length.device)
    near = ((length[..., None] - centres) / WIDTH).square().mul(-0.5).exp().to(torch.float32)
    heavy = (low > 0).to(torch.int64) + (high > 0)
    histograms = _sums(heavy, near, 3)
    return torch.cat((atoms, bonds[:, chosen, 0], histograms.flatten(1)), dim=1).to(torch.float32)


def _sums(kind: Tensor, values: Tensor, kinds: int) -> Tensor:
    """(n, kinds, d): of values (n, P, d) those of each kind (n, P)."""
    result = values.new_zeros(values.shape[0], kinds, values.shape[2])
    return result.scatter_add_(1, kind[..., None].expand_as(values), values)
