"""A small diffusion transformer for 8 x 8 digits.

Layout of DiT (Peebles and Xie 2023, arXiv 2212.09748) with the shared modulation of PixArt-alpha (Chen et al.
2023, arXiv 2310.00426, section 2.3): one linear map makes the shift, scale and gate of every block, and each block
adds its own table to it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.tasks.digits.data import N_CLASSES, SHAPE

NULL_LABEL = N_CLASSES
_TIME_FEATURES = 64


class DigitsDiT(nn.Module):
    """model(x, t, label) -> prediction of the shape of x; without labels it is unconditional.

    x: (B, 1, 8, 8). t: (B,) in [0, 1]. label: (B,) int64 in 0 ... 9, or 10 for "any digit".
    """

    # See `rollout`.
    thread_safe = True

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        side = SHAPE[-1] // patch
        self.embed = nn.Linear(SHAPE[0] * patch * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(N_CLASSES + 1, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SHAPE[0] * patch * patch)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        frequency = torch.exp(torch.arange(_TIME_FEATURES // 2) * (-math.log(1000.0) / (_TIME_FEATURES // 2)))
        self.frequency: Tensor
        self.register_buffer("frequency", 1000.0 * frequency, persistent=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if label is None:
            label = torch.full(t.shape, NULL_LABEL, device=t.device, dtype=torch.int64)
        phase = t[:, None].to(x.dtype) * self.frequency
        code = self.time(torch.cat((phase.cos(), phase.sin()), dim=1)) + self.label(label)
        modulation = self.modulation(code).view(x.shape[0], 6, 1, -1)
        # (B, C, H, W) -> (B, tokens, C patch^2) and back.
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        hidden = self.embed(tokens) + self.position
        for block in self.blocks:
            hidden = block(hidden, modulation)
        out = self.head(self.norm(hidden)).transpose(1, 2)
        side = SHAPE[-1] // self.patch
        return F.pixel_shuffle(out.unflatten(2, (side, side)), self.patch)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.zeros(6, 1, width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (modulation + self.table).unbind(1)
        x = x + gate_1 * self._attention(torch.addcmul(shift_1, self.norm(x), 1.0 + scale_1))
        hidden = torch.addcmul(shift_2, self.norm(x), 1.0 + scale_2)
        return x + gate_2 * self.down(F.gelu(self.up(hidden), approximate="tanh"))

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))
