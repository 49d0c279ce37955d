"""Noise from the intermediate state to a lower level, and the target that goes with it, in one launch.

With a = alpha_s / alpha_cut and root = sqrt(max(sigma_s^2 - (a sigma_cut)^2, 0)), in float64:
x_s = a x + root e, target = (w c / alpha_cut) x + (d - c a sigma_cut^2 / (alpha_cut sigma_s)) e, w = root / sigma_s.
"""

import struct

import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.philox_device import key_words, normal_block
from pgraft_fast_kernels.sizes import block_of, ceil_div


def double_bits(value: float) -> int:
    """A float64 as an integer argument: Triton types a Python float fp32."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


@triton.jit
def as_double(bits):
    """The float64 of `double_bits`."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["key_low", "key_high", "alpha_cut_bits", "sigma_cut_bits"])
def _partial_noise_fwd_kernel(
    x_ptr,
    noise_ptr,
    levels_ptr,
    id_ptr,
    step_ptr,
    x_s_ptr,
    target_ptr,
    weight_ptr,
    key_low,
    key_high,
    alpha_cut_bits,
    sigma_cut_bits,
    size,
    n_blocks,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    sample = (pid // n_blocks).to(tl.int64)
    first = (pid % n_blocks) * BLOCK
    alpha_cut, sigma_cut = as_double(alpha_cut_bits), as_double(sigma_cut_bits)
    level = levels_ptr + sample * 4
    alpha_s, sigma_s, c, d = tl.load(level), tl.load(level + 1), tl.load(level + 2), tl.load(level + 3)
    a = alpha_s / alpha_cut
    carried = a * sigma_cut
    root = tl.sqrt(tl.maximum(sigma_s * sigma_s - carried * carried, 0.0))
    weight = root / sigma_s
    to_x = (weight * c / alpha_cut).to(tl.float32)
    to_noise = (d - c * a * (sigma_cut * sigma_cut) / (alpha_cut * sigma_s)).to(tl.float32)

    position = first + tl.arange(0, BLOCK)
    mask = position < size
    at = sample * size + position
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if noise_ptr is not None:
        e = tl.load(noise_ptr + at, mask=mask, other=0.0).to(tl.float32)
    else:
        e = normal_block(first, tl.load(step_ptr + sample), tl.load(id_ptr + sample), key_low, key_high, BLOCK)
    x_s = a.to(tl.float32) * x + root.to(tl.float32) * e
    target = to_x * x + to_noise * e
    tl.store(x_s_ptr + at, x_s.to(x_s_ptr.dtype.element_ty), mask=mask)
    tl.store(target_ptr + at, target.to(target_ptr.dtype.element_ty), mask=mask)
    if first == 0:
        tl.store(weight_ptr + sample, weight.to(tl.float32))


def partial_noise_fwd(x, noise, levels, sample_id, step, seed, alpha_cut, sigma_cut, x_s, target, weight):
    """Into x_s and target (shape and type of x) and weight (B,) float32.

    x: (B, ...). noise: like x, or None with sample_id and step (B,) int64. levels: (B, 4) float64
    [alpha_s, sigma_s, c, d]. alpha_cut, sigma_cut: float.
    """
    batch = weight.numel()
    if batch == 0:
        return
    size = x.numel() // batch
    block = block_of(size, 1024)
    n_blocks = max(1, ceil_div(size, block))
    tensors = (x, noise, levels, sample_id, step, x_s, target, weight)
    cut = (double_bits(alpha_cut), double_bits(sigma_cut))
    constants = {"BLOCK": block, "num_warps": max(1, block // 256), "enable_fp_fusion": False}
    args = (*tensors, *key_words(seed), *cut, size, n_blocks)
    launch(_partial_noise_fwd_kernel, (batch * n_blocks,), args, constants)
