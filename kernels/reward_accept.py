"""Acceptance by chance and in pairs on tiles of groups, for the reward kernels."""

import triton
import triton.language as tl

from pgraft_fast_kernels.partial_noise import as_double
from pgraft_fast_kernels.philox_device import philox_words
from pgraft_fast_kernels.reward_rank import load_place, load_reward


@triton.jit
def accept_by_chance(id_ptr, reward, finite, top, first, column, length, key_low, key_high, step, temperature):
    """u < exp((r - top) / temperature), in float64; u keyed by the sample id."""
    sample_id = first + column
    if id_ptr is not None:
        sample_id = tl.load(id_ptr + sample_id, mask=column < length, other=0)
    word, _, _, _ = philox_words(tl.full((1, 1), 0, tl.uint32), step, sample_id, key_low, key_high)
    u = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    excess = (tl.where(finite, reward, 0.0).to(tl.float64) - top) / as_double(temperature)
    # Above the top all are accepted: no need for an overflow.
    return finite & (u < tl.exp(tl.where(excess > 0.0, 0.0, excess)))


@triton.jit
def accept_pairwise(reward_ptr, id_ptr, reward, finite, place, first, column, length):
    """The better one of columns 0 and 1, 2 and 3, ...; the last of an odd number has no pair."""
    column_of_pair = column ^ 1
    other, other_finite = load_reward(reward_ptr, first, column_of_pair, length)
    other_place = load_place(id_ptr, first, column_of_pair, length)
    better = (reward > other) | ((reward == other) & (place < other_place))
    return finite & (column_of_pair < length) & (~other_finite | better)
