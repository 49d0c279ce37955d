"""One solver step in one launch: guidance, prediction of x_0, update, noise, copy of the cut state.

With the row (p, q, a, b, c, d, noise number, keep slot) of the device-side table:
g = out_null + guidance (out - out_null), x_0 = clamp(p x + q g), x_s = a x + b x_0 + c previous + d z.
Options that need sums or ranks over a whole sample are in solver_step_sample.py.
"""

import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.philox_device import key_words
from pgraft_fast_kernels.sizes import block_of, ceil_div
from pgraft_fast_kernels.solver_step_device import guided_output, next_state, step_noise, store_step, table_row
from pgraft_fast_kernels.solver_step_sample import launch_by_sample


@triton.jit(do_not_specialize=["key_low", "key_high"])
def _solver_step_fwd_kernel(
    x_ptr,
    out_ptr,
    null_ptr,
    previous_ptr,
    noise_ptr,
    table_ptr,
    step_ptr,
    id_ptr,
    x_s_ptr,
    x_0_ptr,
    x_cut_ptr,
    key_low,
    key_high,
    guidance,
    clip,
    size,
    channels,
    total,
    n_blocks,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    sample = (pid // n_blocks).to(tl.int64)
    first = (pid % n_blocks) * BLOCK
    base = sample * size
    position = first + tl.arange(0, BLOCK)
    mask = position < size
    p, q, a, b, c, d, number, slot = table_row(table_ptr, step_ptr)

    x = tl.load(x_ptr + base + position, mask=mask, other=0.0).to(tl.float32)
    x_0 = p * x + q * guided_output(out_ptr, null_ptr, base + position, mask, tl.cast(guidance, tl.float32))
    if CLIP:
        limit = tl.cast(clip, tl.float32)
        x_0 = tl.where(x_0 < -limit, -limit, x_0)
        x_0 = tl.where(x_0 > limit, limit, x_0)
    x_s = next_state(x, x_0, previous_ptr, base + position, mask, a, b, c)
    if d != 0.0:
        sample_id = sample
        if id_ptr is not None:
            sample_id = tl.load(id_ptr + sample)
        z = step_noise(noise_ptr, base, first, size, channels, number, sample_id, key_low, key_high, BLOCK)
        x_s = x_s + d * z
    store_step(x_s, x_0, x_s_ptr, x_0_ptr, x_cut_ptr, base, position, mask, slot, total)


def solver_step_fwd(
    x,
    out,
    out_null,
    previous,
    noise,
    table,
    step,
    sample_id,
    seed,
    guidance,
    rescale,
    clip,
    ratio,
    limit,
    batch,
    channels,
    x_s,
    x_0,
    x_cut,
    log_prob,
):
    """One step for every sample, into x_s (and x_0, x_cut, log_prob where given).

    States: dense, all in one layout, of `batch` equal samples; channels: 0 for C order, else the number of channels
    of a channels-last layout. table: (S, 8) float32; step: one int64 on the device; sample_id: (B,) int64 or None.
    """
    if x.numel() == 0:
        if log_prob is not None:
            log_prob.zero_()
        return
    if (rescale != 0 and out_null is not None) or ratio > 0 or log_prob is not None:
        run, extra = launch_by_sample, [rescale, ratio, limit, log_prob]
    else:
        run, extra = _launch_flat, []
    tensors = (x, out, out_null, previous, noise, table, step, sample_id, x_s, x_0, x_cut)
    run(tensors, key_words(seed), guidance, clip, x.numel() // batch, channels or None, *extra)


def _launch_flat(tensors, key, guidance, clip, size, channels):
    block = block_of(size, 1024)
    n_blocks = ceil_div(size, block)
    total = tensors[0].numel()
    args = (*tensors, *key, float(guidance), float(clip), size, channels, total, n_blocks)
    constants = {"CLIP": clip > 0, "BLOCK": block, "num_warps": max(1, block // 256), "enable_fp_fusion": False}
    launch(_solver_step_fwd_kernel, (total // size * n_blocks,), args, constants)
