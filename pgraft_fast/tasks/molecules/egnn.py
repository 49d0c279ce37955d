"""The equivariant graph network of EDM, on all pairs of atoms.

A layer sends m_ij = phi_e(h_i, h_j, d_ij^2, d_ij^2 of the input), weighted by an attention of its own, updates h_i from
the sum over j, and then moves x_i by sum_j (x_i - x_j) / (d_ij + 1) phi_x(...), phi_x bounded.
Source: Hoogeboom et al. 2022, arXiv 2203.17003, section 3.2 and appendix; Satorras et al. 2021, arXiv 2102.09844.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.tasks.molecules.denoiser import KINDS
from pgraft_fast.tasks.molecules.elements import SYMBOLS, WIDTH

# EDM's: sums over pairs are divided by it; bound of phi_x.
_SUM_SCALE = 100.0
_MOST = 15.0
# Square angstrom, so that distance has a slope at 0.
_SOFT = 1e-8


class EGNN(nn.Module):
    """A network of `MoleculeDenoiser`; EDM's for QM9 has width 256 and depth 9."""

    def __init__(self, width: int = 256, depth: int = 9) -> None:
        super().__init__()
        # Element columns, kind, time, number of atoms / 10.
        self.embed = nn.Linear(WIDTH - 3 + KINDS + 2, width)
        self.messages = nn.ModuleList(_Message(width) for _ in range(depth))
        self.moves = nn.ModuleList(_Move(width) for _ in range(depth))
        self.element = nn.Linear(width, len(SYMBOLS))
        self.kinds: Tensor
        self.register_buffer("kinds", torch.arange(KINDS), persistent=False)

    def forward(
        self, points: Tensor, columns: Tensor, kinds: Tensor, atom: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        number = atom.sum(dim=1)[:, None].to(points.dtype) / 10.0
        of_all = torch.cat((level[:, :1], number), dim=1)[:, None].expand(-1, atom.shape[1], -1)
        hidden = self.embed(torch.cat((columns, (kinds[:, :, None] == self.kinds).to(points.dtype), of_all), dim=2))
        place = torch.arange(atom.shape[1], device=atom.device)
        pairs = (atom[:, :, None] & atom[:, None, :] & (place[:, None] != place))[..., None]
        _, first = _differences(points)
        start = points
        for message, move in zip(self.messages, self.moves, strict=True):
            apart, square = _differences(points)
            distances = torch.cat((square, first), dim=3)
            hidden = message(hidden, distances, pairs)
            points = move(hidden, points, apart, distances, pairs)
        return points - start, self.element(hidden)


class _Message(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _PairLinear(width)
        self.second = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1)
        self.update = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, hidden: Tensor, distances: Tensor, pairs: Tensor) -> Tensor:
        message = F.silu(self.second(F.silu(self.first(hidden, distances))))
        message = (message * torch.sigmoid(self.attention(message))).masked_fill(pairs.logical_not(), 0.0)
        return hidden + self.update(torch.cat((hidden, message.sum(dim=2) / _SUM_SCALE), dim=2))


class _Move(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _PairLinear(width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.last.weight, gain=0.001)

    def forward(self, hidden: Tensor, points: Tensor, apart: Tensor, distances: Tensor, pairs: Tensor) -> Tensor:
        weight = self.last(F.silu(self.second(F.silu(self.first(hidden, distances)))))
        step = apart / ((distances[..., :1] + _SOFT).sqrt() + 1.0) * torch.tanh(weight) * _MOST
        return points + step.masked_fill(pairs.logical_not(), 0.0).sum(dim=2) / _SUM_SCALE


class _PairLinear(nn.Module):
    """A linear layer of (h_i, h_j, two distances), without a tensor of what goes into it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.distance = nn.Linear(2, width, bias=False)

    def forward(self, hidden: Tensor, distances: Tensor) -> Tensor:
        return self.left(hidden)[:, :, None] + self.right(hidden)[:, None, :] + self.distance(distances)


def _differences(points: Tensor) -> tuple[Tensor, Tensor]:
    """x_i - x_j, (B, N, N, 3), and their squares' sum, (B, N, N, 1)."""
    apart = points[:, :, None] - points[:, None, :]
    return apart, apart.square().sum(dim=3, keepdim=True)
