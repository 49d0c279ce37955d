"""A transformer over the elements of a layout: LayoutFlow's shape (arXiv 2403.18187), with the time by modulation.

Elements are a set: no positions, no order. What the condition tells (that a slot is no element, a label, a box) is
exact in the answer.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.diffusion import convert
from pgraft_fast.tasks.layouts.attention import Packing, masked_attention, packed_attention
from pgraft_fast.tasks.layouts.conditions import element_mask
from pgraft_fast.tasks.layouts.elements import MAX_ELEMENTS, NO_ELEMENT, boxes_of, ltrb_from_cxcywh, packed
from pgraft_fast.tasks.weights import Variant

_TIME_FEATURES = 64
# Of edges: periods of a page, half of it, ... 1/32.
_OCTAVES = 6
SINES = 12 * _OCTAVES
# Where sigma is 0, x - alpha x_0 is 0 as well; times before this one count as it.
_LEAST_TIME = 1e-6


class LayoutsDiT(nn.Module):
    """model(x, t, condition) -> prediction of the shape of x, in the parameterization of the variant.

    x: (B, N, 4 + L), see `elements.pack`. t: (B,) in [0, 1]. condition: (B, N, 6), see `conditions`. attention:
    "padded"; or "packed", where the real rows of all samples stand one behind the other, and their number is read on
    the host: on a CPU that costs nothing.
    """

    # See `rollout`.
    thread_safe = True

    def __init__(
        self, variant: Variant, n_labels: int = 5, width: int = 128, depth: int = 4, heads: int = 4, ratio: int = 2
    ) -> None:
        super().__init__()
        self.variant, self.n_labels, self.attention = variant, n_labels, "padded"
        # The sample, the sines of its edges, and whether label and box are told.
        self.embed = nn.Linear(4 + n_labels + SINES + 2, width)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.count = nn.Embedding(MAX_ELEMENTS + 1, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(_Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4 + n_labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        frequency = torch.exp(torch.arange(_TIME_FEATURES // 2) * (-math.log(1000.0) / (_TIME_FEATURES // 2)))
        self.frequency: Tensor
        self.register_buffer("frequency", 1000.0 * frequency, persistent=False)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        x_0, known = known_values(condition, self.n_labels)
        phase = t[:, None].to(x.dtype) * self.frequency
        element = element_mask(condition)
        count = element.sum(dim=1).clamp(max=MAX_ELEMENTS)
        code = self.time(torch.cat((phase.cos(), phase.sin()), dim=1)) + self.count(count)
        flags = torch.stack((known[..., 0], known[..., 4]), dim=-1).to(x.dtype)
        tokens = torch.cat([x_0.where(known, x), flags], dim=-1)
        out = self._predicted(tokens, self.modulation(code).view(x.shape[0], 6, 1, -1), element)
        time = t.clamp(min=_LEAST_TIME)
        schedule, parameterization = self.variant.schedule, self.variant.parameterization
        answer = convert(x_0, x.where(known, 0.0), schedule, time, "x_0", parameterization)
        return answer.where(known, out)

    def _predicted(self, tokens: Tensor, modulation: Tensor, element: Tensor) -> Tensor:
        """(B, N, 4 + L) of the sample with the flags of what is told."""
        mask: Tensor | Packing = element
        rows = modulation.unbind(1)
        if self.attention == "packed":
            mask = Packing.of(element)
            tokens, rows = mask.packed(tokens), modulation.squeeze(2)[mask.sample].unbind(1)
        hidden = self.embed(torch.cat([tokens, sines(tokens)], dim=-1))
        for block in self.blocks:
            hidden = block(hidden, rows, mask)
        out = self.head(self.norm(hidden))
        return mask.padded(out) if isinstance(mask, Packing) else out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.zeros(6, width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...], mask: "Tensor | Packing") -> Tensor:
        """x: (B, N, width) with mask (B, N) bool, or (rows, width) with their packing."""
        parts = (part + own for part, own in zip(modulation, self.table, strict=True))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts
        hidden = torch.addcmul(shift_1, self.norm(x), 1.0 + scale_1)
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if isinstance(mask, Packing):
            mixed = packed_attention(query, key, value, mask)
        else:
            mixed = masked_attention(query, key, value, mask)
        x = x + gate_1 * self.out(mixed.flatten(-2))
        hidden = torch.addcmul(shift_2, self.norm(x), 1.0 + scale_2)
        return x + gate_2 * self.down(F.gelu(self.up(hidden), approximate="tanh"))


def known_values(condition: Tensor, n_labels: int) -> tuple[Tensor, Tensor]:
    """What a condition tells of x_0, (B, N, 4 + L) float32, 0 where it tells nothing, and where it does, bool.

    All columns of a slot that is no element (they are 0), those of a known label, those of a given box.
    """
    element = element_mask(condition)
    kind = condition[..., 0].round().to(torch.int64)
    label_known = (kind < n_labels) | ~element
    box_known = (condition[..., 1] > 0.5) | ~element
    known = torch.cat([box_known[..., None].expand(-1, -1, 4), label_known[..., None].expand(-1, -1, n_labels)], dim=-1)
    values = packed(kind.where(element, NO_ELEMENT), condition[..., 2:], n_labels)
    return values.where(known, 0.0), known


def sines(x: Tensor) -> Tensor:
    """Sine and cosine of an element's edges and centres at all periods, (..., SINES). x: (..., 4 or more)."""
    boxes = boxes_of(x)
    lines = torch.cat([ltrb_from_cxcywh(boxes), boxes[..., :2]], dim=-1)
    octaves = 2.0 * math.pi * 2.0 ** torch.arange(_OCTAVES, device=x.device, dtype=x.dtype)
    angle = (lines[..., None] * octaves).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
