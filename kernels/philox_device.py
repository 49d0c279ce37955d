"""Philox4x32-10 words and float32 normals in registers, shared by the kernels that draw noise.

The same sums, products, quotients and square roots in the same order as pgraft_fast/ops/philox.py, so the same bits:
every kernel that makes normals is launched with enable_fp_fusion=False.
"""

import triton
import triton.language as tl


def signed_word(value: int) -> int:
    """The low 32 bits as a signed number: an argument that Triton always types i32."""
    return ((value + 2**31) & 0xFFFFFFFF) - 2**31


def key_words(seed: int) -> tuple[int, int]:
    """Low and high word of a 64-bit seed, as kernel arguments."""
    return signed_word(seed), signed_word(seed >> 32)


@triton.jit
def philox_words(block, step, sample_id, key_low, key_high):
    """Four uint32 words of each counter (block, step, id low, id high); sample_id: int64, the rest any integer."""
    c0 = block.to(tl.uint32)
    c1 = step.to(tl.uint32)
    c2 = sample_id.to(tl.uint32)
    c3 = (sample_id >> 32).to(tl.uint32)
    k0 = key_low.to(tl.uint32)
    k1 = key_high.to(tl.uint32)
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(c0, 0xD2511F53)
        high_1 = tl.umulhi(c2, 0xCD9E8D57)
        low_0 = c0 * 0xD2511F53
        low_1 = c2 * 0xCD9E8D57
        c0 = high_1 ^ c1 ^ k0
        c2 = high_0 ^ c3 ^ k1
        c1 = low_1
        c3 = low_0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log_uniform(word):
    """log((w + 1/2) / 2^32); close to u = 1 from 1 - u."""
    near_one = word >= 0xB504F334
    rest = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    bits = (word.to(tl.float32) + 0.5).to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    large = mantissa > 1.41421354
    mantissa = tl.where(large, mantissa * 0.5, mantissa)
    exponent = (bits >> 23) - 159 + large.to(tl.int32)
    shift = tl.where(near_one, 0, exponent).to(tl.float32)
    numerator = tl.where(near_one, -rest, mantissa - 1.0)
    denominator = tl.where(near_one, 2.0 - rest, mantissa + 1.0)
    s = tl.div_rn(numerator, denominator)
    square = s * s
    twice = s + s
    tail = square * 0.1111111111111111 + 0.14285714285714285
    tail = tail * square + 0.2
    tail = tail * square + 0.3333333333333333
    tail = tail * square * twice
    return shift * 0.693147182 + (twice + tail)


@triton.jit
def cos_sin_turn(word):
    """cos and sin of 2 pi (w + 1/2) / 2^32; the nearest quarter turn is taken off in integers."""
    quarter = (word + 0x20000000) >> 30
    angle = ((word - (quarter << 30)).to(tl.int32).to(tl.float32) + 0.5) * 1.4629180792671596e-9
    square = angle * angle
    cosine = square * -2.7557319223985888e-07 + 2.48015873015873e-05
    cosine = cosine * square + -0.001388888888888889
    cosine = cosine * square + 0.041666666666666664
    cosine = cosine * square + -0.5
    cosine = cosine * square + 1.0
    sine = square * 2.7557319223985893e-06 + -0.0001984126984126984
    sine = sine * square + 0.008333333333333333
    sine = sine * square + -0.16666666666666666
    sine = sine * square * angle + angle
    odd = (quarter & 1) != 0
    turned_cosine = tl.where(odd, sine, cosine)
    turned_sine = tl.where(odd, cosine, sine)
    turned_cosine = tl.where(((quarter + 1) & 2) != 0, -turned_cosine, turned_cosine)
    turned_sine = tl.where((quarter & 2) != 0, -turned_sine, turned_sine)
    return turned_cosine, turned_sine


@triton.jit
def box_muller(word_u, word_v):
    """Two normals of two words: sqrt(-2 log u) (cos 2 pi v, sin 2 pi v)."""
    radius = tl.sqrt_rn(log_uniform(word_u) * -2.0)
    cosine, sine = cos_sin_turn(word_v)
    return cosine * radius, sine * radius


@triton.jit
def interleave_4(a, b, c, d):
    """a[0] b[0] c[0] d[0] a[1] ..."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def words_block(first, step, sample_id, key_low, key_high, BLOCK: tl.constexpr):
    """Words first ... first + BLOCK - 1 of a stream; first divisible by 4."""
    w0, w1, w2, w3 = philox_words(first // 4 + tl.arange(0, BLOCK // 4), step, sample_id, key_low, key_high)
    return interleave_4(w0, w1, w2, w3)


@triton.jit
def normal_block(first, step, sample_id, key_low, key_high, BLOCK: tl.constexpr):
    """Normals first ... first + BLOCK - 1 of a stream; first divisible by 4."""
    w0, w1, w2, w3 = philox_words(first // 4 + tl.arange(0, BLOCK // 4), step, sample_id, key_low, key_high)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return interleave_4(z0, z1, z2, z3)


@triton.jit
def normal_at(index, step, sample_id, key_low, key_high):
    """Normals of a stream at any places: four counters' work for each, one normal kept."""
    w0, w1, w2, w3 = philox_words(index // 4, step, sample_id, key_low, key_high)
    later = (index & 2) != 0
    cosine, sine = box_muller(tl.where(later, w2, w0), tl.where(later, w3, w1))
    return tl.where((index & 1) != 0, sine, cosine)
