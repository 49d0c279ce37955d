"""Guidance rescale of the solver step: how far the model's output and the guided one spread over a sample."""

import triton
import triton.language as tl

from pgraft_fast_kernels.parts import add_to_part, load_parts, my_parts
from pgraft_fast_kernels.solver_step_device import guided_output


@triton.jit
def spread_sums(out_ptr, null_ptr, base, first, end, guidance, BLOCK: tl.constexpr):
    """Sums of out and g and of their squares over a part, float64, all after taking off the sample's first value."""
    zero = tl.zeros((BLOCK,), tl.float64)
    sum_out, square_out, sum_g, square_g = zero, zero, zero, zero
    from_out = guided_output(out_ptr, None, base, True, guidance).to(tl.float64)
    from_g = guided_output(out_ptr, null_ptr, base, True, guidance).to(tl.float64)
    for low in range(first, end, BLOCK):
        position = low + tl.arange(0, BLOCK)
        mask = position < end
        out = guided_output(out_ptr, None, base + position, mask, guidance).to(tl.float64)
        g = guided_output(out_ptr, null_ptr, base + position, mask, guidance).to(tl.float64)
        out, g = tl.where(mask, out - from_out, 0.0), tl.where(mask, g - from_g, 0.0)
        sum_out += out
        square_out += out * out
        sum_g += g
        square_g += g * g
    return tl.sum(sum_out, axis=0), tl.sum(square_out, axis=0), tl.sum(sum_g, axis=0), tl.sum(square_g, axis=0)


@triton.jit
def rescale_factor(out_ptr, null_ptr, sum_ptr, sample, size, part, guidance, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """std(out) / std(g) of the sample, from the sums of its parts where they are there."""
    zero = tl.zeros((PARTS,), tl.float64)
    sum_out, square_out, sum_g, square_g = zero, zero, zero, zero
    if sum_ptr is not None:
        quarter = tl.num_programs(0).to(tl.int64)
        sum_out = load_parts(sum_ptr, sample, PARTS)
        square_out = load_parts(sum_ptr + quarter, sample, PARTS)
        sum_g = load_parts(sum_ptr + 2 * quarter, sample, PARTS)
        square_g = load_parts(sum_ptr + 3 * quarter, sample, PARTS)
    else:
        for i in range(PARTS):
            part_sum_out, part_square_out, part_sum_g, part_square_g = spread_sums(
                out_ptr, null_ptr, sample * size, i * part, min((i + 1) * part, size), guidance, BLOCK
            )
            sum_out = add_to_part(sum_out, i, part_sum_out, PARTS)
            square_out = add_to_part(square_out, i, part_square_out, PARTS)
            sum_g = add_to_part(sum_g, i, part_sum_g, PARTS)
            square_g = add_to_part(square_g, i, part_square_g, PARTS)
    of_out = tl.sum(square_out, axis=0) - tl.sum(sum_out, axis=0) / size * tl.sum(sum_out, axis=0)
    of_g = tl.sum(square_g, axis=0) - tl.sum(sum_g, axis=0) / size * tl.sum(sum_g, axis=0)
    # Equal values leave less than nothing, by rounding.
    return tl.sqrt(tl.where(of_out < 0.0, 0.0, of_out) / tl.where(of_g < 0.0, 0.0, of_g)).to(tl.float32)


@triton.jit
def _solver_step_spread_kernel(
    out_ptr, null_ptr, sum_ptr, guidance, size, part, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    sample, i, _ = my_parts(PARTS, True)
    sums = spread_sums(
        out_ptr, null_ptr, sample * size, i * part, min((i + 1) * part, size), tl.cast(guidance, tl.float32), BLOCK
    )
    at, quarter = sum_ptr + tl.program_id(0), tl.num_programs(0).to(tl.int64)
    tl.store(at, sums[0])
    tl.store(at + quarter, sums[1])
    tl.store(at + 2 * quarter, sums[2])
    tl.store(at + 3 * quarter, sums[3])
