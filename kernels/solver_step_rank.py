"""Dynamic threshold of the solver step: the quantile of |x_0| over a sample.

The bits of |x_0|, read as an integer, rise with it. The order statistic is found digit by digit: a pass counts how
often the next eight bits have each value among those that agree in the bits before.
"""

import triton
import triton.language as tl

from pgraft_fast_kernels.parts import my_parts
from pgraft_fast_kernels.solver_step_device import prediction, table_row
from pgraft_fast_kernels.solver_step_spread import rescale_factor

DIGITS, VALUES = tl.constexpr(4), tl.constexpr(256)
LARGEST = tl.constexpr(0x7FFFFFFF)
# Of a sample: the counts of every digit, and by how much the least value beyond them is below the largest integer.
ROW = tl.constexpr(4 * 256 + 1)


@triton.jit
def count_digit(
    x_ptr,
    out_ptr,
    null_ptr,
    base,
    first,
    end,
    p,
    q,
    guidance,
    rescale,
    factor,
    digit,
    before,
    RESCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How often the digit has each value where the digits before it are `before`; the least bits with larger ones."""
    shift = 24 - 8 * digit
    counts = tl.zeros((VALUES,), tl.int32)
    beyond = tl.full((BLOCK,), LARGEST, tl.int32)
    for low in range(first, end, BLOCK):
        position = low + tl.arange(0, BLOCK)
        mask = position < end
        _, x_0 = prediction(x_ptr, out_ptr, null_ptr, base + position, mask, p, q, guidance, rescale, factor, RESCALE)
        bits = tl.abs(x_0).to(tl.int32, bitcast=True)
        # In two shifts: none is by 32.
        head = (bits >> shift) >> 8
        counts += tl.histogram((bits >> shift) & (VALUES - 1), VALUES, mask & (head == before))
        beyond = tl.minimum(beyond, tl.where(mask & (head > before), bits, LARGEST))
    return counts, tl.min(beyond, axis=0)


@triton.jit
def take_digit(counts, before, left):
    """The digits so far with that of the value that has `left` others of these counts under it; how many in its own."""
    value = tl.arange(0, VALUES)
    digit = tl.sum((tl.cumsum(counts, axis=0) <= left).to(tl.int32), axis=0)
    return (before << 8) + digit, left - tl.sum(tl.where(value < digit, counts, 0), axis=0)


@triton.jit
def digits_before(counts_ptr, digit, below):
    """The first digits of the value with `below` others under it, and how many of those share them."""
    before = tl.zeros((), tl.int32)
    left = below
    for i in range(digit):
        before, left = take_digit(tl.load(counts_ptr + i * VALUES + tl.arange(0, VALUES)), before, left)
    return before, left


@triton.jit
def quantile_rank(ratio, size):
    """The place of the ratio-quantile among the values, and the whole part of it."""
    rank = tl.cast(ratio, tl.float32).to(tl.float64) * (size - 1)
    return rank, rank.to(tl.int32)


@triton.jit
def limit_of(low, left, counts, beyond, rank, below, size, limit):
    """The quantile from the bits of its lower neighbour: linear between both, at least 1 and at most the limit."""
    value = tl.arange(0, VALUES)
    digit = low & (VALUES - 1)
    here = tl.sum(tl.where(value == digit, counts, 0), axis=0)
    later = tl.min(tl.where((value > digit) & (counts > 0), low - digit + value, LARGEST), axis=0)
    # Equal values, or the last one, leave nothing to interpolate.
    alone = (left + 1 == here) & (below + 1 < size)
    start = low.to(tl.float32, bitcast=True)
    high = tl.where(alone, tl.minimum(later, beyond), low).to(tl.float32, bitcast=True)
    quantile = start + (rank - below).to(tl.float32) * (high - start)
    quantile = tl.where(quantile < 1.0, 1.0, quantile)
    return tl.where(quantile > limit, limit, quantile)


@triton.jit(do_not_specialize=["digit"])
def _solver_step_count_kernel(
    x_ptr,
    out_ptr,
    null_ptr,
    table_ptr,
    step_ptr,
    sum_ptr,
    counts_ptr,
    guidance,
    rescale,
    ratio,
    size,
    part,
    digit,
    RESCALE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, i, _ = my_parts(PARTS, True)
    p, q, _, _, _, _, _, _ = table_row(table_ptr, step_ptr)
    guidance, rescale = tl.cast(guidance, tl.float32), tl.cast(rescale, tl.float32)
    factor = tl.full((), 1.0, tl.float32)
    if RESCALE:
        factor = rescale_factor(out_ptr, null_ptr, sum_ptr, sample, size, part, guidance, PARTS, BLOCK)
    mine = counts_ptr + sample * ROW
    _, below = quantile_rank(ratio, size)
    before, _ = digits_before(mine, digit, below)
    counts, beyond = count_digit(
        x_ptr,
        out_ptr,
        null_ptr,
        sample * size,
        i * part,
        min((i + 1) * part, size),
        p,
        q,
        guidance,
        rescale,
        factor,
        digit,
        before,
        RESCALE,
        BLOCK,
    )
    # Sums and maxima of integers are the same in any order.
    tl.atomic_add(mine + digit * VALUES + tl.arange(0, VALUES), counts, mask=counts > 0, sem="relaxed")
    if digit == DIGITS - 1:
        tl.atomic_max(mine + DIGITS * VALUES, beyond ^ LARGEST, sem="relaxed")
