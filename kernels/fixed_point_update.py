"""One fixed-point update of an implicit step and its change: y_next = x - h v, residual_b = || y_next - y ||_2."""

import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.sizes import block_of


@triton.jit
def _fixed_point_update_fwd_kernel(x_ptr, v_ptr, y_ptr, y_next_ptr, residual_ptr, h, size, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    base = sample * size
    factor = tl.cast(h, tl.float32)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, size, BLOCK):
        position = first + tl.arange(0, BLOCK)
        mask = position < size
        at = base + position
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
        y_next = x - factor * v
        change = y_next - y
        total += (change * change).to(tl.float64)
        tl.store(y_next_ptr + at, y_next.to(y_next_ptr.dtype.element_ty), mask=mask)
    tl.store(residual_ptr + sample, tl.sqrt(tl.sum(total, axis=0)).to(tl.float32))


def fixed_point_update_fwd(x, v, y, h, y_next, residual):
    """Into y_next (shape and type of x and y) and residual (B,) float32; v may have another type."""
    batch = residual.numel()
    if batch == 0:
        return
    size = x.numel() // batch
    block = block_of(size, 1024)
    constants = {"BLOCK": block, "num_warps": max(1, block // 256), "enable_fp_fusion": False}
    launch(_fixed_point_update_fwd_kernel, (batch,), (x, v, y, y_next, residual, float(h), size), constants)
