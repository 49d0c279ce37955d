"""The total order of candidates (reward descending, sample id ascending) on tiles of groups, for the reward kernels.

A tile is (groups, candidates). Keys are integers that rise with the reward; candidates that are not finite have the
least integer, which no finite reward has.
"""

import triton
import triton.language as tl


@triton.jit
def group_bounds(offsets_ptr, group, groups, width):
    """Flat position of each group's first candidate, and how many it has; 0 beyond the last group."""
    inside = group < groups
    if offsets_ptr is not None:
        first = tl.load(offsets_ptr + group, mask=inside, other=0)
        length = tl.load(offsets_ptr + group + 1, mask=inside, other=0) - first
    else:
        first = group * width
        length = tl.where(inside, width, 0)
    return first, length.to(tl.int32)


@triton.jit
def load_reward(reward_ptr, first, column, length):
    """Rewards, and which are there and finite."""
    reward = tl.load(reward_ptr + first + column, mask=(column >= 0) & (column < length), other=float("nan"))
    return reward, tl.abs(reward) < float("inf")


@triton.jit
def load_place(id_ptr, first, column, length):
    """What orders equal rewards: the sample id, or the column where ids are positions."""
    if id_ptr is not None:
        place = tl.load(id_ptr + first + column, mask=(column >= 0) & (column < length), other=0)
    else:
        place = column + tl.zeros_like(first).to(tl.int32)
    return place


@triton.jit
def order_key(reward, finite):
    """Signed integers in the order of the rewards."""
    # -0 and +0 are one reward, with different bits.
    plain = tl.where(reward == 0.0, tl.zeros_like(reward), reward)
    if reward.dtype == tl.float64:
        bits = plain.to(tl.int64, bitcast=True)
        key = tl.where(finite, bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF), -0x8000000000000000)
    else:
        bits = plain.to(tl.int32, bitcast=True)
        key = tl.where(finite, bits ^ ((bits >> 31) & 0x7FFFFFFF), -0x80000000)
    return key


@triton.jit
def first_trial(like, BITS: tl.constexpr):
    """Least integer and highest bit of a search over `BITS` bits: all of a signed type's, else from 0 up."""
    zero = tl.zeros_like(like)
    if BITS == 64:
        bound = zero + -0x8000000000000000
    elif BITS == 32:
        bound = zero + -0x80000000
    else:
        bound = zero
    return bound


@triton.jit
def kth_key(key, k, BITS: tl.constexpr):
    """(groups, 1): the k-th largest key, or the least integer where fewer are finite. One bit a pass."""
    bound = first_trial(tl.max(key, axis=1, keep_dims=True), BITS)
    bit = tl.full((1, 1), 1, key.dtype)
    for i in range(BITS):
        # The first sum wraps from the least integer to 0.
        trial = bound + (bit << (BITS - 1 - i))
        count = tl.sum((key >= trial).to(tl.int32), axis=1, keep_dims=True)
        bound = tl.where(count >= k, trial, bound)
    return bound


@triton.jit
def kth_place(place, among, need, BITS: tl.constexpr):
    """(groups, 1): the need-th smallest place of those `among`."""
    bound = first_trial(tl.max(place, axis=1, keep_dims=True), BITS)
    bit = tl.full((1, 1), 1, place.dtype)
    for i in range(BITS):
        trial = bound + (bit << (BITS - 1 - i))
        count = tl.sum((among & (place < trial)).to(tl.int32), axis=1, keep_dims=True)
        bound = tl.where(count < need, trial, bound)
    return bound


@triton.jit
def best_k(key, place, finite, k, KEY_BITS: tl.constexpr, PLACE_BITS: tl.constexpr):
    """Which are the k best of their group."""
    bound = kth_key(key, k, KEY_BITS)
    above = key > bound
    tied = finite & (key == bound)
    need = k - tl.sum(above.to(tl.int32), axis=1, keep_dims=True)
    over = tl.sum(tied.to(tl.int32), axis=1, keep_dims=True) - need
    kept = above | tied
    if tl.max(over) > 0:
        kept = above | (tied & (place <= kth_place(place, tied, need, PLACE_BITS)))
    return kept


@triton.jit
def best_one(key, place, finite):
    """Which is the best of its group; none where none is finite."""
    tied = finite & (key == tl.max(key, axis=1, keep_dims=True))
    far = tl.max(place, axis=1, keep_dims=True)
    return tied & (place == tl.min(tl.where(tied, place, far), axis=1, keep_dims=True))


@triton.jit
def rank_by_counting(reward_ptr, id_ptr, reward, place, first, length):
    """How many finite candidates of the group come before each."""
    rank = tl.zeros_like(reward).to(tl.int32)
    for j in range(tl.max(length)):
        column = tl.zeros_like(length) + j
        other, finite = load_reward(reward_ptr, first, column, length)
        earlier = load_place(id_ptr, first, column, length) < place
        rank += (finite & ((other > reward) | ((other == reward) & earlier))).to(tl.int32)
    return rank


@triton.jit
def copies_before(reward_ptr, id_ptr, copies_ptr, threshold, place, key, first, length):
    """How many accepted candidates of the group have the same key and a lower place."""
    before = tl.zeros_like(key).to(tl.int32)
    for j in range(tl.max(length)):
        column = tl.zeros_like(length) + j
        other, finite = load_reward(reward_ptr, first, column, length)
        same = tl.load(copies_ptr + first + column, mask=column < length, other=0) == key
        earlier = load_place(id_ptr, first, column, length) < place
        before += (finite & (other >= threshold) & same & earlier).to(tl.int32)
    return before
