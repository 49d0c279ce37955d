"""Random words and standard normals keyed by (seed, sample id, step); see pgraft_fast/ops/philox.py."""

import triton
import triton.language as tl

from pgraft_fast_kernels.direct_launch import launch
from pgraft_fast_kernels.philox_device import key_words, normal_block, words_block
from pgraft_fast_kernels.sizes import block_of, ceil_div


@triton.jit(do_not_specialize=["key_low", "key_high"])
def _philox_normal_fwd_kernel(
    id_ptr, step_ptr, out_ptr, key_low, key_high, n_values, n_blocks, NORMAL: tl.constexpr, BLOCK: tl.constexpr
):
    pid = tl.program_id(0).to(tl.int64)
    row = pid // n_blocks
    first = (pid % n_blocks) * BLOCK
    sample_id = tl.load(id_ptr + row)
    step = tl.load(step_ptr + row)
    column = first + tl.arange(0, BLOCK)
    if NORMAL:
        values = normal_block(first, step, sample_id, key_low, key_high, BLOCK)
    else:
        values = words_block(first, step, sample_id, key_low, key_high, BLOCK).to(tl.int32)
    tl.store(out_ptr + row * n_values + column, values.to(out_ptr.dtype.element_ty), mask=column < n_values)


def _launch(id, step, seed, n, out, normal):
    if out.numel() == 0:
        return
    block = block_of(n, 1024)
    n_blocks = ceil_div(n, block)
    constants = {"NORMAL": normal, "BLOCK": block, "num_warps": max(1, block // 256), "enable_fp_fusion": False}
    args = (id, step, out, *key_words(seed), n, n_blocks)
    launch(_philox_normal_fwd_kernel, (id.numel() * n_blocks,), args, constants)


def philox_normal_fwd(id, step, seed, n, out):
    """out[r, i] = normal number i of stream (seed, id[r], step[r]), rounded once to the type of out (R, n)."""
    _launch(id, step, seed, n, out, True)


def philox_words_fwd(id, step, seed, n, out):
    """out[r, i] = word i of stream (seed, id[r], step[r]), as int32 bit patterns (R, n)."""
    _launch(id, step, seed, n, out, False)
