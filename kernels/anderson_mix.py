"""Anderson mixing of fixed-point iterates: y = sum_i w_i next_i with the weights of least mixed residual.

With G_ij = <r_i, r_j> and T = tr G: (G / T + ridge I) c = 1, w = c / sum c; the newest alone where T is not above 0.
Source: Walker, Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49, 2011.
"""

import torch
import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.parts import my_parts, split
from pgraft_fast_kernels.sizes import block_of

MAX_HISTORY = 8


@triton.jit
def _sum_in_order(values, line, M: tl.constexpr):
    """The sum of the first M, one after another: the layout of a reduction is the compiler's choice in each kernel."""
    total = tl.zeros((), tl.float64)
    for i in tl.static_range(M):
        total += tl.sum(tl.where(line == i, values, 0.0), axis=0)
    return total


@triton.jit
def _mixing_weights(gram, ridge, M: tl.constexpr, TILE: tl.constexpr):
    """(TILE,) float64 weights of the first M, zero beyond, by Gauss-Jordan elimination without pivoting."""
    line = tl.arange(0, TILE)
    row, column = line[:, None], line[None, :]
    trace = _sum_in_order(tl.sum(tl.where(row == column, gram, 0.0), axis=1), line, M)
    usable = trace > 0.0
    scaled = gram / tl.where(usable, trace, 1.0) + tl.where(row == column, ridge, 0.0)
    inside = (row < M) & (column < M)
    matrix = tl.where(inside, scaled, tl.where(row == column, 1.0, 0.0).to(tl.float64))
    solution = tl.where(line < M, 1.0, 0.0).to(tl.float64)
    for i in tl.static_range(M):
        pivot_row = tl.sum(tl.where(row == i, matrix, 0.0), axis=0)
        pivot_column = tl.sum(tl.where(column == i, matrix, 0.0), axis=1)
        # A pivot of a positive definite matrix is positive, but for rounding.
        pivot = tl.maximum(tl.sum(tl.where(line == i, pivot_row, 0.0), axis=0), 1e-30)
        pivot_row = pivot_row / pivot
        pivot_value = tl.sum(tl.where(line == i, solution, 0.0), axis=0) / pivot
        matrix = tl.where(row == i, pivot_row[None, :], matrix - pivot_column[:, None] * pivot_row[None, :])
        solution = tl.where(line == i, pivot_value, solution - pivot_column * pivot_value)
    newest = tl.where(line == M - 1, 1.0, 0.0).to(tl.float64)
    return tl.where(usable, solution / _sum_in_order(solution, line, M), newest)


@triton.jit
def _gram_of_part(residual_ptr, base, first, end, stride, M: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """(TILE, TILE) float64 products of the residuals at first ... end - 1 of a sample."""
    history = tl.arange(0, TILE).to(tl.int64)
    gram = tl.zeros((TILE, TILE), tl.float64)
    for low in range(first, end, BLOCK):
        position = low + tl.arange(0, BLOCK)
        mask = position < end
        rows = tl.load(
            residual_ptr + history[:, None] * stride + base + position[None, :],
            mask=(history < M)[:, None] & mask[None, :],
            other=0.0,
        ).to(tl.float64)
        for j in tl.static_range(M):
            r_j = tl.load(residual_ptr + j * stride + base + position, mask=mask, other=0.0)
            # Nearly parallel residuals make G as good as singular: products of float32 are exact in float64.
            products = tl.sum(rows * r_j.to(tl.float64)[None, :], axis=1)
            gram += tl.where((history == j)[None, :], products[:, None], 0.0)
    return gram


@triton.jit
def _anderson_gram_fwd_kernel(
    residual_ptr,
    gram_ptr,
    size,
    stride,
    part,
    M: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, i, _ = my_parts(PARTS, True)
    gram = _gram_of_part(residual_ptr, sample * size, i * part, min((i + 1) * part, size), stride, M, TILE, BLOCK)
    line = tl.arange(0, TILE)
    tl.store(gram_ptr + (sample * PARTS + i) * (TILE * TILE) + line[:, None] * TILE + line[None, :], gram)


@triton.jit
def _anderson_mix_fwd_kernel(
    next_ptr,
    residual_ptr,
    gram_ptr,
    y_ptr,
    ridge,
    size,
    stride,
    part,
    M: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, first_part, end_part = my_parts(PARTS, gram_ptr is not None)
    base = sample * size
    line = tl.arange(0, TILE)
    gram = tl.zeros((TILE, TILE), tl.float64)
    if gram_ptr is not None:
        for i in tl.static_range(PARTS):
            at = (sample * PARTS + i) * (TILE * TILE)
            gram += tl.load(gram_ptr + at + line[:, None] * TILE + line[None, :])
    else:
        for i in range(PARTS):
            gram += _gram_of_part(residual_ptr, base, i * part, min((i + 1) * part, size), stride, M, TILE, BLOCK)
    weight = _mixing_weights(gram, tl.cast(ridge, tl.float32).to(tl.float64), M, TILE)
    for first in range(first_part * part, min(end_part * part, size), BLOCK):
        position = first + tl.arange(0, BLOCK)
        mask = position < size
        y = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(M):
            w_j = tl.sum(tl.where(line == j, weight, 0.0), axis=0).to(tl.float32)
            y = y + w_j * tl.load(next_ptr + j * stride + base + position, mask=mask, other=0.0)
        tl.store(y_ptr + base + position, y, mask=mask)


def anderson_mix_fwd(next, residual, ridge, y):
    """Into y (B, ...) from next and residual (m, B, ...), the newest last, m <= 8; all dense float32."""
    history, batch = next.shape[:2]
    if y.numel() == 0:
        return
    stride = y.numel()
    size = stride // batch
    block = block_of(size, 256)
    parts, part, is_split = split(batch, size, block)
    constants = {"M": history, "TILE": MAX_HISTORY, "PARTS": parts, "BLOCK": block}
    constants |= {"num_warps": max(1, block // 64), "enable_fp_fusion": False}
    gram, grid = None, (batch,)
    if is_split:
        grid = (batch * parts,)
        gram = y.new_empty(batch * parts * MAX_HISTORY**2, dtype=torch.float64)
        launch(_anderson_gram_fwd_kernel, grid, (residual, gram, size, stride, part), constants)
    launch(_anderson_mix_fwd_kernel, grid, (next, residual, gram, y, float(ridge), size, stride, part), constants)
