"""The solver step where it needs a whole sample at once: guidance rescale, dynamic threshold, log-probability.

Rescale: g <- rescale (g std(out) / std(g)) + (1 - rescale) g (Lin et al., arXiv 2305.08891, section 3.4).
Dynamic threshold: x_0 <- clamp(x_0, -L, L) / L, L = the ratio-quantile of |x_0|, at least 1 and at most the limit
(Saharia et al., arXiv 2205.11487, section 2.3). One program goes over a small sample again and again; of a large one
each part has a program, and sums and counts pass through memory from one launch to the next.
"""

import torch
import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.parts import add_to_part, load_parts, my_parts, split
from pgraft_fast_kernels.sizes import block_of
from pgraft_fast_kernels.solver_step_device import next_state, prediction, step_noise, store_step, table_row
from pgraft_fast_kernels.solver_step_rank import (
    DIGITS,
    LARGEST,
    ROW,
    VALUES,
    _solver_step_count_kernel,
    count_digit,
    digits_before,
    limit_of,
    quantile_rank,
    take_digit,
)
from pgraft_fast_kernels.solver_step_spread import _solver_step_spread_kernel, rescale_factor


@triton.jit
def dynamic_limit(
    x_ptr,
    out_ptr,
    null_ptr,
    counts_ptr,
    sample,
    size,
    p,
    q,
    guidance,
    rescale,
    factor,
    ratio,
    limit,
    RESCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ratio-quantile of |x_0|, from the counts where they are there, at least 1 and at most the limit."""
    rank, below = quantile_rank(ratio, size)
    if counts_ptr is not None:
        mine = counts_ptr + sample * ROW
        low, left = digits_before(mine, DIGITS, below)
        counts = tl.load(mine + (DIGITS - 1) * VALUES + tl.arange(0, VALUES))
        beyond = tl.load(mine + DIGITS * VALUES) ^ LARGEST
    else:
        low, left, beyond = tl.zeros((), tl.int32), below, tl.zeros((), tl.int32)
        counts = tl.zeros((VALUES,), tl.int32)
        for i in range(DIGITS):
            counts, beyond = count_digit(
                x_ptr,
                out_ptr,
                null_ptr,
                sample * size,
                0,
                size,
                p,
                q,
                guidance,
                rescale,
                factor,
                i,
                low,
                RESCALE,
                BLOCK,
            )
            low, left = take_digit(counts, low, left)
    return limit_of(low, left, counts, beyond, rank, below, size, limit)


@triton.jit
def log_density(squares, d, size):
    """The log-density of noise with this sum of squares, times d; 0 where d is."""
    value = tl.zeros((), tl.float64)
    if d != 0.0:
        value = -0.5 * squares - size * (tl.log(d.to(tl.float64)) + 0.91893853320467274178)
    return value.to(tl.float32)


@triton.jit(do_not_specialize=["key_low", "key_high"])
def _solver_step_sample_fwd_kernel(
    x_ptr,
    out_ptr,
    null_ptr,
    previous_ptr,
    noise_ptr,
    table_ptr,
    step_ptr,
    id_ptr,
    x_s_ptr,
    x_0_ptr,
    x_cut_ptr,
    sum_ptr,
    counts_ptr,
    square_ptr,
    log_prob_ptr,
    key_low,
    key_high,
    guidance,
    clip,
    rescale,
    ratio,
    limit,
    size,
    channels,
    total,
    part,
    CLIP: tl.constexpr,
    RESCALE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, first_part, end_part = my_parts(PARTS, SPLIT)
    base = sample * size
    p, q, a, b, c, d, number, slot = table_row(table_ptr, step_ptr)
    guidance, rescale = tl.cast(guidance, tl.float32), tl.cast(rescale, tl.float32)
    sample_id = sample
    if id_ptr is not None:
        sample_id = tl.load(id_ptr + sample)
    factor = tl.full((), 1.0, tl.float32)
    if RESCALE:
        factor = rescale_factor(out_ptr, null_ptr, sum_ptr, sample, size, part, guidance, PARTS, BLOCK)
    bound = tl.cast(clip, tl.float32)
    inverse = tl.full((), 1.0, tl.float32)
    if THRESHOLD:
        bound = dynamic_limit(
            x_ptr,
            out_ptr,
            null_ptr,
            counts_ptr,
            sample,
            size,
            p,
            q,
            guidance,
            rescale,
            factor,
            ratio,
            tl.cast(limit, tl.float32),
            RESCALE,
            BLOCK,
        )
        inverse = tl.div_rn(inverse, bound)

    sums = tl.zeros((PARTS,), tl.float64)
    for first in range(first_part * part, min(end_part * part, size), BLOCK):
        position = first + tl.arange(0, BLOCK)
        mask = position < size
        at = base + position
        x, x_0 = prediction(x_ptr, out_ptr, null_ptr, at, mask, p, q, guidance, rescale, factor, RESCALE)
        if CLIP or THRESHOLD:
            x_0 = tl.where(x_0 < -bound, -bound, x_0)
            x_0 = tl.where(x_0 > bound, bound, x_0) * inverse
        x_s = next_state(x, x_0, previous_ptr, at, mask, a, b, c)
        if d != 0.0:
            z = step_noise(noise_ptr, base, first, size, channels, number, sample_id, key_low, key_high, BLOCK)
            x_s = x_s + d * z
            if log_prob_ptr is not None or square_ptr is not None:
                squares = tl.sum(tl.where(mask, z * z, 0.0).to(tl.float64), axis=0)
                sums = add_to_part(sums, first // part, squares, PARTS)
        store_step(x_s, x_0, x_s_ptr, x_0_ptr, x_cut_ptr, base, position, mask, slot, total)
    if log_prob_ptr is not None:
        tl.store(log_prob_ptr + sample, log_density(tl.sum(sums, axis=0), d, size))
    if square_ptr is not None:
        tl.store(square_ptr + tl.program_id(0), tl.sum(sums, axis=0))


@triton.jit
def _solver_step_log_prob_kernel(square_ptr, table_ptr, step_ptr, log_prob_ptr, size, PARTS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    _, _, _, _, _, d, _, _ = table_row(table_ptr, step_ptr)
    squares = tl.sum(load_parts(square_ptr, sample, PARTS), axis=0)
    tl.store(log_prob_ptr + sample, log_density(squares, d, size))


def launch_by_sample(tensors, key, guidance, clip, size, channels, rescale, ratio, limit, log_prob):
    """For `solver_step_fwd`, which has the arguments' meaning."""
    x, out, out_null, _, _, table, step = tensors[:7]
    block, total = block_of(size, 1024), x.numel()
    batch = total // size
    parts, part, is_split = split(batch, size, block)
    programs = batch * parts
    guidance, rescale, ratio = float(guidance), float(rescale), float(ratio)
    rescaled = rescale != 0 and out_null is not None
    shared = {"PARTS": parts, "BLOCK": block, "num_warps": max(1, block // 128), "enable_fp_fusion": False}
    sums = counts = squares = None
    if is_split and rescaled:
        sums = x.new_empty(4 * programs, dtype=torch.float64)
        launch(_solver_step_spread_kernel, (programs,), (out, out_null, sums, guidance, size, part), shared)
    if is_split and ratio > 0:
        counts = x.new_zeros(batch * ROW.value, dtype=torch.int32)
        args = (x, out, out_null, table, step, sums, counts, guidance, rescale, ratio, size, part)
        for digit in range(DIGITS.value):
            launch(_solver_step_count_kernel, (programs,), (*args, digit), shared | {"RESCALE": rescaled})
    if is_split and log_prob is not None:
        squares = x.new_empty(programs, dtype=torch.float64)
    numbers = (guidance, float(clip), rescale, ratio, float(limit))
    args = (
        *tensors,
        sums,
        counts,
        squares,
        None if is_split else log_prob,
        *key,
        *numbers,
        size,
        channels,
        total,
        part,
    )
    constants = shared | {"CLIP": clip > 0, "RESCALE": rescaled, "THRESHOLD": ratio > 0, "SPLIT": is_split}
    launch(_solver_step_sample_fwd_kernel, (programs if is_split else batch,), args, constants)
    if squares is not None:
        last = {"PARTS": parts, "num_warps": 1, "enable_fp_fusion": False}
        launch(_solver_step_log_prob_kernel, (batch,), (squares, table, step, log_prob, size), last)
