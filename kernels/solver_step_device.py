"""Device functions of the solver step, for a launch of blocks and for one of whole samples."""

import triton
import triton.language as tl

from pgraft_fast_kernels.philox_device import normal_at, normal_block


@triton.jit
def table_row(table_ptr, step_ptr):
    """The eight numbers of the step that the device has reached."""
    row = table_ptr + tl.load(step_ptr) * 8
    p, q, a, b = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    c, d, number, slot = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    return p, q, a, b, c, d, number.to(tl.int64), slot.to(tl.int64)


@triton.jit
def guided_output(out_ptr, null_ptr, at, mask, guidance):
    """out, or out_null + guidance (out - out_null), float32."""
    g = tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if null_ptr is not None:
        null = tl.load(null_ptr + at, mask=mask, other=0.0).to(tl.float32)
        g = null + guidance * (g - null)
    return g


@triton.jit
def prediction(x_ptr, out_ptr, null_ptr, at, mask, p, q, guidance, rescale, factor, RESCALE: tl.constexpr):
    """x and x_0 before any clipping."""
    g = guided_output(out_ptr, null_ptr, at, mask, guidance)
    if RESCALE:
        g = rescale * (g * factor) + (1.0 - rescale) * g
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return x, p * x + q * g


@triton.jit
def step_noise(noise_ptr, base, first, size, channels, number, sample_id, key_low, key_high, BLOCK: tl.constexpr):
    """z at memory positions first ... first + BLOCK - 1 of a sample; its number is its place in C order."""
    position = first + tl.arange(0, BLOCK)
    if noise_ptr is not None:
        z = tl.load(noise_ptr + base + position, mask=position < size, other=0.0).to(tl.float32)
    elif channels is None:
        z = normal_block(first, number, sample_id, key_low, key_high, BLOCK)
    else:
        index = (position % channels) * (size // channels) + position // channels
        z = normal_at(index, number, sample_id, key_low, key_high)
    return z


@triton.jit
def next_state(x, x_0, previous_ptr, at, mask, a, b, c):
    """a x + b x_0 + c previous; the older state is not touched where c is 0, and is x_0's stand-in where missing."""
    if previous_ptr is None:
        x_s = a * x + (b + c) * x_0
    else:
        x_s = a * x + b * x_0
        if c != 0.0:
            x_s = x_s + c * tl.load(previous_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return x_s


@triton.jit
def store_step(x_s, x_0, x_s_ptr, x_0_ptr, x_cut_ptr, base, position, mask, slot, total):
    """Write the new state, the prediction where wanted, and the cut state where this step has a slot."""
    rounded = x_s.to(x_s_ptr.dtype.element_ty)
    tl.store(x_s_ptr + base + position, rounded, mask=mask)
    if x_0_ptr is not None:
        tl.store(x_0_ptr + base + position, x_0.to(x_0_ptr.dtype.element_ty), mask=mask)
    if x_cut_ptr is not None:
        if slot > 0:
            tl.store(x_cut_ptr + (slot - 1) * total + base + position, rounded, mask=mask)
