"""Attention within samples whose rows stand one behind the other, without padding.

On CUDA by xformers' BlockDiagonalMask or torch's varlen_attn; on a CPU the attention alone is padded.
"""

import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the real slots of a padded batch go. element: (B, N) bool, which are real. index: (rows,) int64, those of
    B N, in order. sample: (rows,) int64, whose they are. starts: (B + 1,) int32, of the samples' rows.
    """

    element: Tensor
    index: Tensor
    sample: Tensor
    starts: Tensor

    @staticmethod
    def of(element: Tensor) -> "Packing":
        """The number of rows is read on the host: no CUDA graph holds this."""
        index = element.flatten().nonzero().flatten()
        starts = F.pad(element.sum(dim=1).cumsum(0), (1, 0)).to(torch.int32)
        return Packing(element, index, index // element.shape[1], starts)

    def packed(self, x: Tensor) -> Tensor:
        """(rows, ...) of (B, N, ...)."""
        return x.flatten(0, 1)[self.index]

    def padded(self, rows: Tensor) -> Tensor:
        """(B, N, d) of (rows, d), 0 elsewhere."""
        full = rows.new_zeros(self.element.numel(), rows.shape[1])
        return full.index_copy(0, self.index, rows).unflatten(0, self.element.shape)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, element: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the real slots; (B, N, heads, d) each, as is the result. element: (B, N) bool.

    A sample without any sees all its slots: a softmax needs one.
    """
    mask = (element | ~element.any(dim=1, keepdim=True))[:, None, None, :]
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """softmax(q k^T / sqrt(d)) v within each sample; (rows, heads, d) each, as is the result."""
    if not query.is_cuda:
        heads = query.shape[1:]
        query, key, value = (packing.padded(part.flatten(1)).unflatten(2, heads) for part in (query, key, value))
        return packing.packed(masked_attention(query, key, value, packing.element))
    if query.dtype != torch.float32 and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        n = packing.element.shape[1]
        mixed = varlen_attn(query, key, value, packing.starts, packing.starts, n, n)
        return mixed if isinstance(mixed, Tensor) else mixed[0]
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha import BlockDiagonalMask

    counts = packing.starts.diff().tolist()
    bias = BlockDiagonalMask.from_seqlens([count for count in counts if count], device=query.device)
    return memory_efficient_attention(query[None], key[None], value[None], attn_bias=bias)[0]
