"""Flat positions of the accepted candidates, ascending, from a mask and the number accepted in each group."""

import torch
import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.reward_rank import group_bounds
from pgraft_fast_kernels.sizes import ceil_div, power_above


@triton.jit
def _reward_pack_fwd_kernel(
    mask_ptr,
    offsets_ptr,
    group_count_ptr,
    end_ptr,
    index_ptr,
    groups,
    width,
    capacity,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)[:, None]
    first, length = group_bounds(offsets_ptr, group, groups, width)
    inside = group < groups
    at = tl.load(end_ptr + group, mask=inside, other=0) - tl.load(group_count_ptr + group, mask=inside, other=0)
    for low in range(0, tl.max(length), BLOCK):
        column = low + tl.arange(0, BLOCK)[None, :]
        kept = tl.load(mask_ptr + first + column, mask=column < length, other=0).to(tl.int32)
        target = at + tl.cumsum(kept, axis=1) - 1
        tl.store(index_ptr + target, first + column, mask=(kept != 0) & (target < capacity))
        at += tl.sum(kept, axis=1, keep_dims=True)


def pack(mask, offsets, groups, width, group_count, index, count):
    """Into index (capacity,) int64, filled up with -1, and count () int64, all accepted; for one stream of launches."""
    index.fill_(-1)
    torch.sum(group_count, dim=0, out=count)
    if groups == 0 or index.numel() == 0:
        return
    block = min(1024, max(4, power_above(width)))
    block_groups = max(1, min(1024 // block, power_above(groups)))
    tensors = (mask.view(torch.uint8), offsets, group_count, torch.cumsum(group_count, dim=0), index)
    constants = {"BLOCK_GROUPS": block_groups, "BLOCK": block, "num_warps": max(1, block * block_groups // 256)}
    grid = (ceil_div(groups, block_groups),)
    launch(_reward_pack_fwd_kernel, grid, (*tensors, groups, width, index.numel()), constants)
