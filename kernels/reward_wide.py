"""The rules of reward_filter.py for groups too wide for the registers: a program a group, block by block."""

import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.partial_noise import as_double
from pgraft_fast_kernels.reward_accept import accept_by_chance, accept_pairwise
from pgraft_fast_kernels.reward_rank import copies_before, first_trial, group_bounds, load_place, load_reward, order_key

SEARCH_WARPS, OTHER_WARPS, PER_WARP = 16, 4, 128  # more for the k best: a pass over the group for every bit


@triton.jit
def _largest_reward(reward_ptr, first, length, BLOCK: tl.constexpr):
    top = tl.full((1, 1), float("-inf"), reward_ptr.dtype.element_ty)
    for low in range(0, tl.max(length), BLOCK):
        reward, finite = load_reward(reward_ptr, first, low + tl.arange(0, BLOCK)[None, :], length)
        top = tl.maximum(top, tl.max(tl.where(finite, reward, float("-inf")), axis=1, keep_dims=True))
    return top.to(tl.float64)


@triton.jit
def _last_kept(
    reward_ptr, id_ptr, first, length, k, KEY_BITS: tl.constexpr, PLACE_BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Key and place of the k-th best candidate; the least key where fewer are finite."""
    start = tl.full((1, 1), 0, tl.int32)
    any_reward, is_finite = load_reward(reward_ptr, first, start, length)
    any_key = order_key(any_reward, is_finite)
    bound = first_trial(any_key, KEY_BITS)
    bit = tl.full((1, 1), 1, any_key.dtype)
    for i in range(KEY_BITS):
        trial = bound + (bit << (KEY_BITS - 1 - i))
        count = tl.zeros((1, BLOCK), tl.int32)
        for low in range(0, tl.max(length), BLOCK):
            reward, finite = load_reward(reward_ptr, first, low + tl.arange(0, BLOCK)[None, :], length)
            count += (order_key(reward, finite) >= trial).to(tl.int32)
        bound = tl.where(tl.sum(count, axis=1, keep_dims=True) >= k, trial, bound)

    above = tl.zeros((1, BLOCK), tl.int32)
    for low in range(0, tl.max(length), BLOCK):
        reward, finite = load_reward(reward_ptr, first, low + tl.arange(0, BLOCK)[None, :], length)
        above += (order_key(reward, finite) > bound).to(tl.int32)
    need = k - tl.sum(above, axis=1, keep_dims=True)

    any_place = load_place(id_ptr, first, start, length)
    place_bound = first_trial(any_place, PLACE_BITS)
    one_place = tl.full((1, 1), 1, any_place.dtype)
    for i in range(PLACE_BITS):
        trial_place = place_bound + (one_place << (PLACE_BITS - 1 - i))
        count = tl.zeros((1, BLOCK), tl.int32)
        for low in range(0, tl.max(length), BLOCK):
            column = low + tl.arange(0, BLOCK)[None, :]
            reward, finite = load_reward(reward_ptr, first, column, length)
            tied = finite & (order_key(reward, finite) == bound)
            count += (tied & (load_place(id_ptr, first, column, length) < trial_place)).to(tl.int32)
        place_bound = tl.where(tl.sum(count, axis=1, keep_dims=True) < need, trial_place, place_bound)
    return bound, place_bound


@triton.jit(do_not_specialize=["k", "temperature", "threshold", "key_low", "key_high", "step", "served"])
def _reward_wide_fwd_kernel(
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
    served,
    RULE: tl.constexpr,
    BEST_IF_EMPTY: tl.constexpr,
    KEY_BITS: tl.constexpr,
    PLACE_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    first, length = group_bounds(offsets_ptr, group, groups, width)
    if tl.max(length) <= served:
        return
    if RULE == 0:
        last_key, last_place = _last_kept(reward_ptr, id_ptr, first, length, k, KEY_BITS, PLACE_BITS, BLOCK)
    if RULE == 1:
        if r_max_ptr is not None:
            top = tl.load(r_max_ptr + group)
        else:
            top = _largest_reward(reward_ptr, first, length, BLOCK)

    count = tl.zeros((1, 1), tl.int32)
    for low in range(0, tl.max(length), BLOCK):
        column = low + tl.arange(0, BLOCK)[None, :]
        reward, finite = load_reward(reward_ptr, first, column, length)
        place = load_place(id_ptr, first, column, length)
        if RULE == 0:
            key = order_key(reward, finite)
            kept = finite & ((key > last_key) | ((key == last_key) & (place <= last_place)))
        elif RULE == 1:
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
        tl.store(mask_ptr + first + column, kept.to(tl.uint8), mask=column < length)
        count += tl.sum(kept.to(tl.int32), axis=1, keep_dims=True)

    if BEST_IF_EMPTY:
        if tl.max(count) == 0:
            best_key, best_place = _last_kept(reward_ptr, id_ptr, first, length, 1, KEY_BITS, PLACE_BITS, BLOCK)
            for low in range(0, tl.max(length), BLOCK):
                column = low + tl.arange(0, BLOCK)[None, :]
                reward, finite = load_reward(reward_ptr, first, column, length)
                place = load_place(id_ptr, first, column, length)
                kept = finite & (order_key(reward, finite) == best_key) & (place == best_place)
                tl.store(mask_ptr + first + column, kept.to(tl.uint8), mask=column < length)
                count += tl.sum(kept.to(tl.int32), axis=1, keep_dims=True)
    tl.store(group_count_ptr + group, count.to(tl.int64))


def launch_wide(tensors, numbers, options, served):
    """For `reward_filter_fwd`, with its kernel's arguments; groups of up to `served` candidates are done."""
    groups, width = numbers[:2]
    num_warps = SEARCH_WARPS if options["RULE"] == 0 else OTHER_WARPS
    place_bits = 64 if tensors[2] is not None else max(1, (width - 1).bit_length())
    constants = options | {"PLACE_BITS": place_bits, "BLOCK": num_warps * PER_WARP, "num_warps": num_warps}
    launch(_reward_wide_fwd_kernel, (groups,), (*tensors, *numbers, served), constants)
