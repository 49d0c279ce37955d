"""Acceptance of candidates by reward, group by group, and the packed index of those accepted.

Rules: 0 the k best, 1 with probability exp((r - top) / temperature), 2 r >= threshold, 3 the better of each pair,
4 r >= threshold without copies. See pgraft_fast/selection/rules.py. Groups too wide for the registers are served by
reward_wide.py.
"""

import torch
import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.partial_noise import as_double, double_bits
from pgraft_fast_kernels.philox_device import key_words, signed_word
from pgraft_fast_kernels.reward_accept import accept_by_chance, accept_pairwise
from pgraft_fast_kernels.reward_pack import pack
from pgraft_fast_kernels.reward_rank import (
    best_k,
    best_one,
    copies_before,
    group_bounds,
    load_place,
    load_reward,
    order_key,
    rank_by_counting,
)
from pgraft_fast_kernels.reward_wide import launch_wide
from pgraft_fast_kernels.sizes import ceil_div, power_above

COUNTED = 64  # groups up to this width are ranked by counting
RESIDENT = 4096  # and up to this one by bisection in registers
RAGGED = 1024  # likewise where lengths differ and the bound may be loose: the few longer groups are wide ones


@triton.jit(do_not_specialize=["k", "temperature", "threshold", "key_low", "key_high", "step"])
def _reward_filter_fwd_kernel(
    reward_ptr,
    offsets_ptr,
    id_ptr,
    copies_ptr,
    r_max_ptr,
    mask_ptr,
    group_count_ptr,
    groups,
    width,
    k,
    temperature,
    threshold,
    key_low,
    key_high,
    step,
    RULE: tl.constexpr,
    ONE: tl.constexpr,
    COUNT: tl.constexpr,
    BEST_IF_EMPTY: tl.constexpr,
    KEY_BITS: tl.constexpr,
    PLACE_BITS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    first, length = group_bounds(offsets_ptr, group, groups, width)
    mine = (group < groups) & (length <= BLOCK)
    length = tl.where(mine, length, 0)
    reward, finite = load_reward(reward_ptr, first, column, length)
    place = load_place(id_ptr, first, column, length)
    key = order_key(reward, finite)

    if RULE == 0:
        if ONE:
            kept = best_one(key, place, finite)
        elif COUNT:
            kept = finite & (rank_by_counting(reward_ptr, id_ptr, reward, place, first, length) < k)
        else:
            kept = best_k(key, place, finite, k, KEY_BITS, PLACE_BITS)
    elif RULE == 1:
        if r_max_ptr is not None:
            top = tl.load(r_max_ptr + group, mask=group < groups, other=0.0)
        else:
            top = tl.max(tl.where(finite, reward, float("-inf")), axis=1, keep_dims=True).to(tl.float64)
        kept = accept_by_chance(
            id_ptr, reward, finite, top, first, column, length, key_low, key_high, step, temperature
        )
    elif RULE == 3:
        kept = accept_pairwise(reward_ptr, id_ptr, reward, finite, place, first, column, length)
    else:
        needed = as_double(threshold).to(reward.dtype)
        kept = finite & (reward >= needed)
        if copies_ptr is not None:
            copy_of = tl.load(copies_ptr + first + column, mask=column < length, other=0)
            before = copies_before(reward_ptr, id_ptr, copies_ptr, needed, place, copy_of, first, length)
            kept = kept & (before == 0)

    count = tl.sum(kept.to(tl.int32), axis=1, keep_dims=True)
    if BEST_IF_EMPTY:
        kept = kept | ((count == 0) & best_one(key, place, finite))
        count = tl.sum(kept.to(tl.int32), axis=1, keep_dims=True)
    tl.store(mask_ptr + first + column, kept.to(tl.uint8), mask=column < length)
    tl.store(group_count_ptr + group, count.to(tl.int64), mask=mine)


def reward_filter_fwd(
    rewards,
    offsets,
    sample_id,
    copies_of,
    r_max,
    groups,
    width,
    rule,
    k,
    temperature,
    threshold,
    best_if_empty,
    seed,
    step,
    mask,
    group_count,
    index,
    count,
):
    """Into mask (bool, flat like rewards), group_count (P,), index (capacity,) filled up with -1, count ().

    rewards: (P, N) or (M,) with offsets (P + 1,), float32 or float64. sample_id, copies_of: int64 like rewards, or
    None; r_max: (P,) float64 or None. width: N, or about the longest group: a hint. Nothing waits for the device.
    """
    if rule != 4:
        copies_of = None
    tensors = (rewards, offsets, sample_id, copies_of, r_max, mask.view(torch.uint8), group_count)
    longest = width if offsets is None else rewards.numel()
    numbers = (
        groups,
        longest,
        k,
        double_bits(temperature),
        double_bits(threshold),
        *key_words(seed),
        signed_word(step),
    )
    options = {"RULE": rule, "BEST_IF_EMPTY": bool(best_if_empty), "KEY_BITS": rewards.element_size() * 8}
    block = 0
    if groups > 0 and (offsets is not None or width <= RESIDENT):
        block = max(4, power_above(width))
        block = block if offsets is None else min(RAGGED, block)
        # Sample ids and float64 arithmetic take twice the registers.
        per_warp = 512 if sample_id is None and rule != 1 else 256
        block_groups = max(1, min(per_warp // block, power_above(groups)))
        place_bits = 64 if sample_id is not None else block.bit_length() - 1
        constants = options | {"ONE": k == 1, "COUNT": block <= COUNTED, "PLACE_BITS": place_bits}
        constants |= {"BLOCK_GROUPS": block_groups, "BLOCK": block}
        constants["num_warps"] = max(1, block * block_groups // per_warp)
        grid = (ceil_div(groups, block_groups),)
        launch(_reward_filter_fwd_kernel, grid, (*tensors, *numbers), constants)
    if groups > 0 and longest > block:
        launch_wide(tensors, numbers, options, block)
    pack(mask, offsets, groups, width, group_count, index, count)
