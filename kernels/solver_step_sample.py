"""The solver step where it needs a whole sample at once: guidance rescale, dynamic threshold, log-probability.

Rescale: g <- rescale (g std(out) / std(g)) + (1 - rescale) g (Lin et al., arXiv 2305.08891, section 3.4).
Dynamic threshold: x_0 <- clamp(x_0, -L, L) / L, L = the ratio-quantile of |x_0|, at least 1 and at most the limit
(Saharia et al., arXiv 2205.11487, section 2.3). One program a sample goes over it block by block.
"""

import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.sizes import block_of
from pgraft_fast_kernels.solver_step_device import guided_output, next_state, step_noise, store_step, table_row


@triton.jit
def rescale_factor(out_ptr, null_ptr, base, size, guidance, BLOCK: tl.constexpr):
    """std(out) / std(g) of the sample, each about its mean: two passes."""
    zero = tl.zeros((BLOCK,), tl.float64)
    sum_out, sum_g = zero, zero
    for first in range(0, size, BLOCK):
        position = first + tl.arange(0, BLOCK)
        sum_out += guided_output(out_ptr, None, base + position, position < size, guidance).to(tl.float64)
        sum_g += guided_output(out_ptr, null_ptr, base + position, position < size, guidance).to(tl.float64)
    mean_out = (tl.sum(sum_out, axis=0) / size).to(tl.float32)
    mean_g = (tl.sum(sum_g, axis=0) / size).to(tl.float32)
    square_out, square_g = zero, zero
    for first in range(0, size, BLOCK):
        position = first + tl.arange(0, BLOCK)
        mask = position < size
        away = tl.where(mask, guided_output(out_ptr, None, base + position, mask, guidance) - mean_out, 0.0)
        square_out += (away * away).to(tl.float64)
        away = tl.where(mask, guided_output(out_ptr, null_ptr, base + position, mask, guidance) - mean_g, 0.0)
        square_g += (away * away).to(tl.float64)
    return tl.sqrt(tl.sum(square_out, axis=0) / tl.sum(square_g, axis=0)).to(tl.float32)


@triton.jit
def prediction(x_ptr, out_ptr, null_ptr, at, mask, p, q, guidance, rescale, factor, RESCALE: tl.constexpr):
    """x and x_0 before any clipping."""
    g = guided_output(out_ptr, null_ptr, at, mask, guidance)
    if RESCALE:
        g = rescale * (g * factor) + (1.0 - rescale) * g
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return x, p * x + q * g


@triton.jit
def size_bits(
    x_ptr,
    out_ptr,
    null_ptr,
    base,
    first,
    size,
    p,
    q,
    guidance,
    rescale,
    factor,
    RESCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bits of |x_0|, which rise with it; the largest integer outside the sample."""
    position = first + tl.arange(0, BLOCK)
    mask = position < size
    _, x_0 = prediction(x_ptr, out_ptr, null_ptr, base + position, mask, p, q, guidance, rescale, factor, RESCALE)
    return tl.where(mask, tl.abs(x_0).to(tl.int32, bitcast=True), 0x7FFFFFFF)


@triton.jit
def dynamic_limit(
    x_ptr,
    out_ptr,
    null_ptr,
    base,
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
    """The ratio-quantile of |x_0|, linear between neighbours, at least 1 and at most the limit."""
    rank = ratio.to(tl.float64) * (size - 1)
    below = rank.to(tl.int32)
    # The order statistic is the largest bit pattern with at most `below` values under it.
    low = tl.zeros((), tl.int32)
    for i in range(31):
        trial = low + (tl.full((), 1, tl.int32) << (30 - i))
        under = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, size, BLOCK):
            bits = size_bits(
                x_ptr, out_ptr, null_ptr, base, first, size, p, q, guidance, rescale, factor, RESCALE, BLOCK
            )
            under += (bits < trial).to(tl.int32)
        low = tl.where(tl.sum(under, axis=0) <= below, trial, low)
    up_to = tl.zeros((BLOCK,), tl.int32)
    next_bits = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
    for first in range(0, size, BLOCK):
        bits = size_bits(x_ptr, out_ptr, null_ptr, base, first, size, p, q, guidance, rescale, factor, RESCALE, BLOCK)
        up_to += (bits <= low).to(tl.int32)
        next_bits = tl.minimum(next_bits, tl.where(bits > low, bits, 0x7FFFFFFF))
    # Equal values, or the last one, leave nothing to interpolate.
    alone = (tl.sum(up_to, axis=0) == below + 1) & (below + 1 < size)
    high = tl.where(alone, tl.min(next_bits, axis=0), low).to(tl.float32, bitcast=True)
    value = low.to(tl.float32, bitcast=True)
    quantile = value + (rank - below).to(tl.float32) * (high - value)
    quantile = tl.where(quantile < 1.0, 1.0, quantile)
    return tl.where(quantile > limit, limit, quantile)


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
    CLIP: tl.constexpr,
    RESCALE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    base = sample * size
    p, q, a, b, c, d, number, slot = table_row(table_ptr, step_ptr)
    guidance, rescale = tl.cast(guidance, tl.float32), tl.cast(rescale, tl.float32)
    sample_id = sample
    if id_ptr is not None:
        sample_id = tl.load(id_ptr + sample)
    factor = tl.full((), 1.0, tl.float32)
    if RESCALE:
        factor = rescale_factor(out_ptr, null_ptr, base, size, guidance, BLOCK)
    bound = tl.cast(clip, tl.float32)
    inverse = tl.full((), 1.0, tl.float32)
    if THRESHOLD:
        bound = dynamic_limit(
            x_ptr,
            out_ptr,
            null_ptr,
            base,
            size,
            p,
            q,
            guidance,
            rescale,
            factor,
            tl.cast(ratio, tl.float32),
            tl.cast(limit, tl.float32),
            RESCALE,
            BLOCK,
        )
        inverse = tl.div_rn(inverse, bound)

    squares = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, size, BLOCK):
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
            squares += tl.where(mask, z * z, 0.0).to(tl.float64)
        store_step(x_s, x_0, x_s_ptr, x_0_ptr, x_cut_ptr, base, position, mask, slot, total)
    if log_prob_ptr is not None:
        value = tl.zeros((), tl.float64)
        if d != 0.0:
            value = -0.5 * tl.sum(squares, axis=0) - size * (tl.log(d.to(tl.float64)) + 0.91893853320467274178)
        tl.store(log_prob_ptr + sample, value.to(tl.float32))


def launch_by_sample(tensors, key, guidance, clip, size, channels, rescale, ratio, limit, log_prob):
    """For `solver_step_fwd`, which has the arguments' meaning: one program a sample."""
    block = block_of(size, 1024)
    total = tensors[0].numel()
    numbers = (float(guidance), float(clip), float(rescale), float(ratio), float(limit))
    args = (*tensors, log_prob, *key, *numbers, size, channels, total)
    constants = {"CLIP": clip > 0, "RESCALE": rescale != 0 and tensors[2] is not None, "THRESHOLD": ratio > 0}
    constants |= {"BLOCK": block, "num_warps": max(1, block // 256), "enable_fp_fusion": False}
    launch(_solver_step_sample_fwd_kernel, (total // size,), args, constants)
