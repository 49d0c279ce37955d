"""A small transformer over atoms whose attention is biased by their distances.

Positions enter by distances, and by inner products of vectors to what the heads attend to; they leave as sums over
pairs of weights times x_i - x_j. So the answer turns, is mirrored and moves with the input, and permutes with it.
Layout of the blocks as of DiT (Peebles and Xie 2023, arXiv 2212.09748), modulated as in PixArt-alpha
(arXiv 2310.00426).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.tasks.molecules.denoiser import KINDS
from pgraft_fast.tasks.molecules.elements import SYMBOLS, WIDTH

# Angstrom: the radial functions are Gaussians from 0 to there, as wide as they are apart.
_REACH = 6.0
_TIME_FEATURES = 32
# Highest of the angular frequencies of the time.
_FASTEST = 60.0
# Weight of a slot without an atom: exp(-1e9) is 0 in each dtype.
_NO_WEIGHT = -1e9
# Square angstrom, so that distance has a slope at 0.
_SOFT = 1e-4
_ATOMS_SCALE = 10.0


class DistanceTransformer(nn.Module):
    """A network of `MoleculeDenoiser`.

    stages: a later one sees the positions of x_0 as those before it estimate them. depth: blocks of a stage. width: a
    multiple of heads. radial: functions of the distance. mixed: inner products of vectors in a block. hidden: of the
    feed-forward layers, in widths.
    """

    def __init__(
        self, width: int = 96, stages: int = 2, depth: int = 3, heads: int = 4, radial: int = 32, mixed: int = 16,
        hidden: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(WIDTH - 3, width)
        self.kind = nn.Embedding(KINDS, width)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES + KINDS, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.stages = nn.ModuleList(_Stage(width, depth, heads, radial, mixed, hidden) for _ in range(stages))
        self.norm = nn.LayerNorm(width)
        self.element = _last_linear(width, len(SYMBOLS))
        self.frequency: Tensor
        self.kinds: Tensor
        steps = torch.linspace(0.0, math.log(_FASTEST), _TIME_FEATURES // 2)
        self.register_buffer("frequency", steps.exp(), persistent=False)
        self.register_buffer("kinds", torch.arange(1, KINDS), persistent=False)

    def forward(
        self, points: Tensor, columns: Tensor, kinds: Tensor, atom: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        phase = level[:, :1] * self.frequency
        # Slots without an atom, kind 0, are not counted.
        number = (kinds[:, :, None] == self.kinds).sum(dim=1).to(points.dtype) / _ATOMS_SCALE
        code = self.time(torch.cat((phase.cos(), phase.sin(), number, number.sum(dim=1, keepdim=True)), dim=1))
        modulation = self.modulation(code).view(atom.shape[0], 6, 1, -1)
        of_state, of_answer = level[:, 1:2, None], level[:, 2:3, None]
        hidden, seen = self.embed(columns) + self.kind(kinds), points
        moves, absent = torch.zeros_like(points), atom.logical_not()
        for place, stage in enumerate(self.stages):
            if place:
                seen = (of_state * points + of_answer * moves).masked_fill(absent[:, :, None], 0.0)
            hidden, more = stage(hidden, modulation, code, seen, atom)
            moves = moves + more
        return moves, self.element(self.norm(hidden))


class _Stage(nn.Module):
    """Blocks that see the same positions, and what they make of them: sums over pairs of weights times x_i - x_j."""

    def __init__(self, width: int, depth: int, heads: int, radial: int, mixed: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        # Of each head of each block, and of the last sum over pairs.
        self.of_distance = nn.Linear(width, (depth + 1) * heads * radial)
        self.blocks = nn.ModuleList(_Block(width, heads, mixed, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pair = nn.Linear(width, 2 * width, bias=False)
        self.gates = _last_linear(width, depth * heads)
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(0.0, _REACH, radial), persistent=False)

    def forward(
        self, hidden: Tensor, modulation: Tensor, code: Tensor, points: Tensor, atom: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hidden (B, N, width) after the blocks, and moves (B, N, 3)."""
        n_batch, n = atom.shape
        weight = self.of_distance(code).view(n_batch, -1, self.centres.numel())
        by_distance = (weight @ self._radial(points)).view(n_batch, -1, self.heads, n, n)
        absent = torch.zeros_like(points[:, :, 0]).masked_fill(atom.logical_not(), _NO_WEIGHT)[:, None, None, None]
        biases, vectors = by_distance[:, :-1] + absent, []
        for block, bias in zip(self.blocks, biases.unbind(1), strict=True):
            hidden, vector = block(hidden, modulation, bias, points)
            vectors.append(vector)
        answer = self.norm(hidden)
        gate = self.gates(answer).transpose(1, 2)[..., None]
        moves = (gate * torch.cat(vectors, dim=1)).sum(dim=1)
        return hidden, moves + self._pairs(answer, by_distance[:, -1], points, atom)

    def _radial(self, points: Tensor) -> Tensor:
        """(B, radial, N N)."""
        columns = points.transpose(1, 2)
        square = (columns[:, :, :, None] - columns[:, :, None, :]).square().sum(dim=1)
        # exp(-u^2 / 2) of u = (distance - centre) / gap, as a power of 2: torch's exp takes ten times as long on a CPU
        # where it comes to 0.
        scale = math.sqrt(0.5 / math.log(2.0)) * (self.centres.numel() - 1) / _REACH
        distance = (square + _SOFT).sqrt().flatten(1)[:, None, :] * scale
        return (distance - self.centres[:, None] * scale).square().neg().exp2()

    def _pairs(self, hidden: Tensor, by_distance: Tensor, points: Tensor, atom: Tensor) -> Tensor:
        """sum_j w_ij (x_i - x_j), (B, N, 3)."""
        left, right = self.pair(hidden).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weight = (left @ right.transpose(2, 3) * by_distance).sum(dim=1) / math.sqrt(left.shape[-1])
        weight = weight.masked_fill(atom.logical_not()[:, None, :], 0.0)
        return weight.sum(dim=2, keepdim=True) * points - weight @ points


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mixed: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.mixed = heads, mixed
        self.table = nn.Parameter(torch.zeros(6, 1, width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(heads, 2 * mixed, bias=False)
        self.out = nn.Linear(width + mixed, width)
        self.up = nn.Linear(width, hidden * width)
        self.down = nn.Linear(hidden * width, width)

    def forward(self, x: Tensor, modulation: Tensor, bias: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The atoms (B, N, width), and vectors to what each head attends to, (B, heads, N, 3)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (modulation + self.table).unbind(1)
        mixed, vectors = self._attention(torch.addcmul(shift_1, self.norm(x), 1.0 + scale_1), bias, points)
        x = torch.addcmul(x, gate_1, mixed)
        hidden = torch.addcmul(shift_2, self.norm(x), 1.0 + scale_2)
        return torch.addcmul(x, gate_2, self.down(F.silu(self.up(hidden)))), vectors

    def _attention(self, x: Tensor, bias: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weight = torch.softmax((query / math.sqrt(query.shape[-1])) @ key.transpose(2, 3) + bias, dim=-1)
        vectors = (weight.flatten(1, 2) @ points).unflatten(1, (self.heads, -1)) - points[:, None]
        left, right = self.mix(vectors.permute(0, 2, 3, 1)).chunk(2, dim=3)
        inner = (left * right).sum(dim=2)
        return self.out(torch.cat(((weight @ value).transpose(1, 2).flatten(2), inner), dim=2)), vectors


def _last_linear(width: int, out: int) -> nn.Linear:
    """Its answer is 0 at first."""
    layer = nn.Linear(width, out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
