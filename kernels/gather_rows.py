"""Rows of one or two tensors at the same places, in one launch: rows[i] = x[index[i]], zeros where index[i] < 0."""

import torch
import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.sizes import ceil_div, power_above

_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16))


@triton.jit
def _copy_tile(source_ptr, target_ptr, source_row, target_row, keep, column, width):
    mask = keep & (column < width)
    values = tl.load(source_ptr + source_row * width + column, mask=mask & (source_row >= 0), other=0)
    tl.store(target_ptr + target_row * width + column, values, mask=mask)


@triton.jit
def _gather_rows_fwd_kernel(
    index_ptr,
    x_ptr,
    other_ptr,
    rows_ptr,
    other_rows_ptr,
    n_rows,
    width,
    other_width,
    n_blocks,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    row = (pid // n_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (pid % n_blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    keep = row < n_rows
    source_row = tl.load(index_ptr + row, mask=keep, other=-1)
    _copy_tile(x_ptr, rows_ptr, source_row, row, keep, column, width)
    if other_ptr is not None:
        _copy_tile(other_ptr, other_rows_ptr, source_row, row, keep, column, other_width)


def _widest(source, target):
    """Both byte tables in the widest words that divide their rows and addresses."""
    for size, dtype in _WORDS:
        lengths = [n for t in (source, target) for n in (t.shape[1], t.stride(0), t.storage_offset(), t.data_ptr())]
        if not any(n % size for n in lengths):
            return source.view(dtype), target.view(dtype), source.shape[1] // size
    return source, target, source.shape[1]


def gather_rows_fwd(index, x, other, rows, other_rows):
    """Into rows (M, row_bytes) uint8 from x (n, row_bytes) uint8, and the same for other where given.

    index: (M,) int64, below n; a negative one gives zeros. All dense.
    """
    n_rows = index.numel()
    x, rows, width = _widest(x, rows)
    other_width = 0
    if other is not None:
        other, other_rows, other_width = _widest(other, other_rows)
    widest = max(width, other_width)
    if n_rows == 0 or widest == 0:
        return
    block = min(1024, max(2, power_above(widest)))
    block_rows = max(1, min(512 // block, power_above(n_rows)))
    n_blocks = ceil_div(widest, block)
    grid = (ceil_div(n_rows, block_rows) * n_blocks,)
    args = (index, x, other, rows, other_rows, n_rows, width, other_width, n_blocks)
    constants = {"BLOCK_ROWS": block_rows, "BLOCK": block, "num_warps": 4 if block * block_rows >= 512 else 1}
    launch(_gather_rows_fwd_kernel, grid, args, constants)
