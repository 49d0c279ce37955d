"""One fixed-point update of an implicit step and its change: y_next = x - h v, residual_b = || y_next - y ||_2."""

import torch
import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.parts import add_to_part, load_parts, my_parts, split
from pgraft_fast_kernels.sizes import block_of


@triton.jit
def _fixed_point_update_fwd_kernel(
    x_ptr,
    v_ptr,
    y_ptr,
    y_next_ptr,
    sum_ptr,
    residual_ptr,
    h,
    size,
    part,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, first_part, end_part = my_parts(PARTS, SPLIT)
    base = sample * size
    factor = tl.cast(h, tl.float32)
    sums = tl.zeros((PARTS,), tl.float64)
    for i in range(first_part, end_part):
        squares = tl.zeros((BLOCK,), tl.float64)
        for first in range(i * part, min((i + 1) * part, size), BLOCK):
            position = first + tl.arange(0, BLOCK)
            mask = position < size
            at = base + position
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            v = tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32)
            y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
            y_next = x - factor * v
            change = y_next - y
            squares += (change * change).to(tl.float64)
            tl.store(y_next_ptr + at, y_next.to(y_next_ptr.dtype.element_ty), mask=mask)
        sums = add_to_part(sums, i, tl.sum(squares, axis=0), PARTS)
    total = tl.sum(sums, axis=0)
    if SPLIT:
        tl.store(sum_ptr + sample * PARTS + first_part, total)
    else:
        tl.store(residual_ptr + sample, tl.sqrt(total).to(tl.float32))


@triton.jit
def _fixed_point_residual_kernel(sum_ptr, residual_ptr, PARTS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    total = tl.sum(load_parts(sum_ptr, sample, PARTS), axis=0)
    tl.store(residual_ptr + sample, tl.sqrt(total).to(tl.float32))


def fixed_point_update_fwd(x, v, y, h, y_next, residual):
    """Into y_next (shape and type of x and y) and residual (B,) float32; v may have another type."""
    batch = residual.numel()
    if batch == 0:
        return
    size = x.numel() // batch
    block = block_of(size, 1024)
    parts, part, is_split = split(batch, size, block)
    sums = residual.new_empty(batch * parts, dtype=torch.float64) if is_split else None
    constants = {"PARTS": parts, "SPLIT": is_split, "BLOCK": block}
    constants |= {"num_warps": max(1, block // 256), "enable_fp_fusion": False}
    grid = (batch * parts if is_split else batch,)
    launch(_fixed_point_update_fwd_kernel, grid, (x, v, y, y_next, sums, residual, float(h), size, part), constants)
    if is_split:
        launch(_fixed_point_residual_kernel, (batch,), (sums, residual), {"PARTS": parts, "num_warps": 1})
