"""Mean squared error of each sample with a weight on the output: loss_b = mean_i (w_b out_i - target_i)^2."""

import torch
import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.parts import add_to_part, load_parts, my_parts, split
from pgraft_fast_kernels.sizes import block_of, ceil_div


@triton.jit
def _weighted_mse_fwd_kernel(
    out_ptr,
    target_ptr,
    weight_ptr,
    sum_ptr,
    loss_ptr,
    size,
    part,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, first_part, end_part = my_parts(PARTS, SPLIT)
    base = sample * size
    weight = tl.load(weight_ptr + sample)
    sums = tl.zeros((PARTS,), tl.float64)
    for i in range(first_part, end_part):
        squares = tl.zeros((BLOCK,), tl.float64)
        for first in range(i * part, min((i + 1) * part, size), BLOCK):
            position = first + tl.arange(0, BLOCK)
            mask = position < size
            out = tl.load(out_ptr + base + position, mask=mask, other=0.0).to(tl.float32)
            target = tl.load(target_ptr + base + position, mask=mask, other=0.0).to(tl.float32)
            error = weight * out - target
            squares += (error * error).to(tl.float64)
        sums = add_to_part(sums, i, tl.sum(squares, axis=0), PARTS)
    total = tl.sum(sums, axis=0)
    if SPLIT:
        tl.store(sum_ptr + sample * PARTS + first_part, total)
    else:
        tl.store(loss_ptr + sample, (total / size).to(tl.float32))


@triton.jit
def _weighted_mse_mean_kernel(sum_ptr, loss_ptr, size, PARTS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    tl.store(loss_ptr + sample, (tl.sum(load_parts(sum_ptr, sample, PARTS), axis=0) / size).to(tl.float32))


@triton.jit
def _weighted_mse_bwd_kernel(
    out_ptr, target_ptr, weight_ptr, grad_ptr, grad_out_ptr, size, n_blocks, BLOCK: tl.constexpr
):
    pid = tl.program_id(0)
    sample = (pid // n_blocks).to(tl.int64)
    position = (pid % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = position < size
    at = sample * size + position
    weight = tl.load(weight_ptr + sample)
    scale = tl.div_rn(2.0 * weight * tl.load(grad_ptr + sample), size + 0.0)
    out = tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + at, mask=mask, other=0.0).to(tl.float32)
    grad = scale * (weight * out - target)
    tl.store(grad_out_ptr + at, grad.to(grad_out_ptr.dtype.element_ty), mask=mask)


def weighted_mse_fwd(out, target, weight, loss):
    """loss (B,) float32 of out and target (B, ...), each float32, float16 or bfloat16; weight: (B,) float32."""
    batch = loss.numel()
    if batch == 0:
        return
    size = out.numel() // batch
    block = block_of(size, 2048)
    parts, part, is_split = split(batch, size, block)
    sums = loss.new_empty(batch * parts, dtype=torch.float64) if is_split else None
    constants = {"PARTS": parts, "SPLIT": is_split, "BLOCK": block}
    constants |= {"num_warps": max(1, block // 256), "enable_fp_fusion": False}
    grid = (batch * parts if is_split else batch,)
    launch(_weighted_mse_fwd_kernel, grid, (out, target, weight, sums, loss, size, part), constants)
    if is_split:
        launch(_weighted_mse_mean_kernel, (batch,), (sums, loss, size), {"PARTS": parts, "num_warps": 1})


def weighted_mse_bwd(out, target, weight, grad, grad_out):
    """grad_out = grad_b 2 w_b / size (w_b out - target), in the type of out; grad: (B,) float32."""
    if out.numel() == 0:
        return
    batch = weight.numel()
    size = out.numel() // batch
    block = block_of(size, 1024)
    n_blocks = ceil_div(size, block)
    constants = {"BLOCK": block, "num_warps": max(1, block // 256), "enable_fp_fusion": False}
    args = (out, target, weight, grad, grad_out, size, n_blocks)
    launch(_weighted_mse_bwd_kernel, (batch * n_blocks,), args, constants)
