"""Anderson mixing of fixed-point iterates: y = sum_i w_i next_i with the weights of least mixed residual.

With G_ij = <r_i, r_j> and T = tr G: (G / T + ridge I) c = 1, w = c / sum c; the newest alone where T is not above 0.
Source: Walker, Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49, 2011.
"""

import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.sizes import block_of

MAX_HISTORY = 8


@triton.jit
def _mixing_weights(gram, ridge, M: tl.constexpr, TILE: tl.constexpr):
    """(TILE,) float64 weights of the first M, zero beyond, by Gauss-Jordan elimination without pivoting."""
    line = tl.arange(0, TILE)
    row, column = line[:, None], line[None, :]
    trace = tl.sum(tl.sum(tl.where(row == column, gram, 0.0), axis=1), axis=0)
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
    return tl.where(usable, solution / tl.sum(solution, axis=0), newest)


@triton.jit
def _anderson_mix_fwd_kernel(
    next_ptr, residual_ptr, y_ptr, ridge, size, stride, M: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    base = tl.program_id(0).to(tl.int64) * size
    history = tl.arange(0, TILE).to(tl.int64)
    gram = tl.zeros((TILE, TILE), tl.float64)
    for first in range(0, size, BLOCK):
        position = first + tl.arange(0, BLOCK)
        mask = position < size
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
    weight = _mixing_weights(gram, tl.cast(ridge, tl.float32).to(tl.float64), M, TILE)
    for first in range(0, size, BLOCK):
        position = first + tl.arange(0, BLOCK)
        mask = position < size
        y = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(M):
            w_i = tl.sum(tl.where(history == i, weight, 0.0), axis=0).to(tl.float32)
            y = y + w_i * tl.load(next_ptr + i * stride + base + position, mask=mask, other=0.0)
        tl.store(y_ptr + base + position, y, mask=mask)


def anderson_mix_fwd(next, residual, ridge, y):
    """Into y (B, ...) from next and residual (m, B, ...), the newest last, m <= 8; all dense float32."""
    history, batch = next.shape[:2]
    if y.numel() == 0:
        return
    size = y.numel() // batch
    block = block_of(size, 256)
    constants = {"M": history, "TILE": MAX_HISTORY, "BLOCK": block}
    constants |= {"num_warps": max(1, block // 64), "enable_fp_fusion": False}
    launch(_anderson_mix_fwd_kernel, (batch,), (next, residual, y, float(ridge), size, y.numel()), constants)
