"""Large samples in parts, a program each where the batch is small.

Sums are taken part by part, and one sum of the sums of all parts follows, be it one program that took them or many: the
same bits from both. All is chosen from the sizes alone, not from the GPU.
"""

import triton
import triton.language as tl

from pgraft_fast_kernels.sizes import ceil_div

PART = 4096  # least values of a part
MOST_PARTS = 32
FULL_BATCH = 128  # so many samples occupy a GPU with a program each


def split(batch, size, block):
    """(parts of a sample: a power of two, values of a part: whole blocks, whether each part has a program)."""
    parts = min(MOST_PARTS, 1 << max(1, size // PART).bit_length() - 1)
    return parts, ceil_div(ceil_div(size, parts), block) * block, parts > 1 and batch < FULL_BATCH


@triton.jit
def my_parts(PARTS: tl.constexpr, SPLIT: tl.constexpr):
    """(sample, first part, end of the parts) of this program."""
    pid = tl.program_id(0)
    if SPLIT:
        sample, first, end = pid // PARTS, pid % PARTS, pid % PARTS + 1
    else:
        sample, first, end = pid, 0, PARTS
    return sample.to(tl.int64), first, end


@triton.jit
def add_to_part(sums, i, value, PARTS: tl.constexpr):
    """Sums of parts, (PARTS,), with the value added to that of part i."""
    return sums + tl.where(tl.arange(0, PARTS) == i, value, 0.0)


@triton.jit
def load_parts(sum_ptr, sample, PARTS: tl.constexpr):
    """The sums of a sample's parts, (PARTS,), from memory."""
    return tl.load(sum_ptr + sample * PARTS + tl.arange(0, PARTS))
