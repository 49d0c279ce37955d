"""Philox4x32-10 counter-based random numbers, with the eager reference in plain torch.

The generator is a bijection of a 128-bit counter under a 64-bit key, so any number of a trajectory can
be computed alone, in any order and on any device. Source: Salmon, Moraes, Dror, Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011; known-answer vectors from Random123.

Normals are float32 by construction: only sums, products, quotients and square roots that IEEE 754 rounds
correctly, each rounded on its own (no fused multiply-add), in a fixed order. So every backend that keeps to the
order gives the same bits, whatever its vector width.
"""

import math

import torch
from torch import Tensor

from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.registration import register, traced

_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10

# log(f) = 2 s + 2 s s^2 (1/3 + s^2/5 + ...), s = (f - 1) / (f + 1), |s| <= 0.172: next term below 3e-9.
_LOG = [1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0]
# sin x = x + x x^2 (...), cos x = 1 + x^2 (...) on [-pi/4, pi/4]: next terms below 2e-9.
_SIN = [-1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362880.0]
_COS = [-0.5, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40320.0, -1.0 / 3628800.0]
_SQRT_HALF_WORD = 0xB504F334
_SQRT_2 = 1.41421354
_LN_2 = 0.693147182


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten Philox rounds.

    counter: four int64 tensors of one shape, each holding a 32-bit unsigned word.
    key: two 32-bit unsigned words. Returns four int64 tensors of words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of the 32 x 32 product.
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0 = ((product_1 >> 32) & _MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = ((product_0 >> 32) & _MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1 = product_1.bitwise_and_(_MASK)
        c3 = product_0.bitwise_and_(_MASK)
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def philox_words(seed: int, sample_id: Tensor, step: Tensor, n_words: int) -> Tensor:
    """Random words keyed by seed, with counter (word // 4, step, id low, id high).

    sample_id: int64. step: int64 in [0, 2^32). Their shapes broadcast to the shape of the result but its last:
    ids (B,) and steps (S, 1) give (S, B, n_words) int64 in [0, 2^32).
    """
    sample_id, step = torch.broadcast_tensors(sample_id, step.to(sample_id.device))
    call = _words_op if traced(sample_id, step) else _run_words
    return call(sample_id, step, signed(seed), n_words)


def words_to_uniform(words: Tensor) -> Tensor:
    """(w + 1/2) / 2^32 in float64: exact, and never 0 or 1."""
    return words.to(torch.float64).add_(0.5).mul_(2.0**-32)


def words_to_normal(words: Tensor) -> Tensor:
    """Box-Muller on neighbouring words: z = sqrt(-2 log u) (cos 2 pi v, sin 2 pi v), float32.

    words: (..., n) int64 with n even, u = (w + 1/2) / 2^32. Within 4 ulp of the exact value; |z| < 6.8.
    """
    # The float32 square root of torch is not correctly rounded on every CPU; that of float64, rounded, is.
    radius = _log_uniform(words[..., 0::2]).mul_(-2.0).to(torch.float64).sqrt_().to(torch.float32)
    cosine, sine = _cos_sin_turn(words[..., 1::2])
    return torch.stack((cosine.mul_(radius), sine.mul_(radius)), dim=-1).flatten(-2)


def philox_normal(
    seed: int, sample_id: Tensor, step: Tensor, n_values: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers keyed by (seed, sample, step), (..., n_values) in `dtype`.

    Computed in float32 and rounded once to a narrower dtype. Shapes as in `philox_words`. The words are the same on
    every backend, and so are the normals where division and square root are correctly rounded (all of ours).
    """
    sample_id, step = torch.broadcast_tensors(sample_id, step.to(sample_id.device))
    call = _normal_op if traced(sample_id, step) else _run_normal
    return call(sample_id, step, signed(seed), n_values, dtype)


def signed(seed: int) -> int:
    """The same 64 bits as a signed number, as operators take them."""
    return ((seed + 2**63) & (2**64 - 1)) - 2**63


def _run_words(sample_id: Tensor, step: Tensor, seed: int, n_words: int) -> Tensor:
    launch = launcher("philox_words", sample_id)
    if launch is None:
        return _reference_words(sample_id, step, seed, n_words)
    words = torch.empty((*sample_id.shape, n_words), dtype=torch.int32, device=sample_id.device)
    launch(sample_id.contiguous().view(-1), step.contiguous().view(-1), seed, n_words, words.view(-1, n_words))
    return words.to(torch.int64).bitwise_and_(_MASK)


def _run_normal(sample_id: Tensor, step: Tensor, seed: int, n_values: int, dtype: torch.dtype) -> Tensor:
    launch = launcher("philox_normal", sample_id)
    if launch is None:
        n_even = n_values + n_values % 2
        return words_to_normal(_reference_words(sample_id, step, seed, n_even))[..., :n_values].to(dtype)
    narrow = torch.float32 if dtype is torch.float64 else dtype
    out = torch.empty((*sample_id.shape, n_values), dtype=narrow, device=sample_id.device)
    launch(sample_id.contiguous().view(-1), step.contiguous().view(-1), seed, n_values, out.view(-1, n_values))
    return out.to(dtype)


def _reference_words(sample_id: Tensor, step: Tensor, seed: int, n_words: int) -> Tensor:
    n_blocks = -(-n_words // 4)
    shape = (*sample_id.shape, n_blocks)
    block = torch.arange(n_blocks, device=sample_id.device).expand(shape)
    row = step.unsqueeze(-1).expand(shape)
    low = (sample_id & _MASK).unsqueeze(-1).expand(shape)
    high = ((sample_id >> 32) & _MASK).unsqueeze(-1).expand(shape)
    words = philox4x32((block, row, low, high), (seed & _MASK, (seed >> 32) & _MASK))
    return torch.stack(words, dim=-1).flatten(-2)[..., :n_words]


def _horner(x: Tensor, series: list[float]) -> Tensor:
    total = torch.full_like(x, series[-1])
    for coefficient in reversed(series[:-1]):
        total.mul_(x).add_(coefficient)
    return total


def _log_uniform(words: Tensor) -> Tensor:
    """log((w + 1/2) / 2^32). Close to u = 1 it starts from 1 - u, which integers give without cancellation."""
    near_one = words >= _SQRT_HALF_WORD
    rest = (_MASK - words).to(torch.float32).add_(0.5).mul_(2.0**-32)
    bits = words.to(torch.float32).add_(0.5).view(torch.int32)
    mantissa = (bits & 0x007FFFFF).bitwise_or_(0x3F800000).view(torch.float32)
    large = mantissa > _SQRT_2
    mantissa = torch.where(large, mantissa * 0.5, mantissa)
    exponent = (bits >> 23).sub_(127 + 32).add_(large)
    exponent = torch.where(near_one, torch.zeros_like(exponent), exponent).to(torch.float32)
    numerator = torch.where(near_one, -rest, mantissa - 1.0)
    denominator = torch.where(near_one, 2.0 - rest, mantissa + 1.0)
    s = numerator / denominator
    square = s * s
    twice = s + s
    tail = _horner(square, _LOG).mul_(square).mul_(twice)
    return exponent.mul_(_LN_2).add_(twice.add_(tail))


def _cos_sin_turn(words: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi (w + 1/2) / 2^32: the nearest quarter turn is taken off in integers."""
    quarter = (words + 2**29) >> 30
    angle = (words - (quarter << 30)).to(torch.float32).add_(0.5).mul_(math.pi * 2.0**-31)
    square = angle * angle
    cosine = _horner(square, _COS).mul_(square).add_(1.0)
    sine = _horner(square, _SIN).mul_(square).mul_(angle).add_(angle)
    odd = (quarter & 1).bool()
    cosine, sine = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    cosine_negative = ((quarter + 1) & 2).bool()
    sine_negative = (quarter & 2).bool()
    return torch.where(cosine_negative, -cosine, cosine), torch.where(sine_negative, -sine, sine)


_words_op = register(
    "philox_words(Tensor sample_id, Tensor step, int seed, int n_words) -> Tensor",
    _run_words,
    lambda sample_id, step, seed, n_words: sample_id.new_empty((*sample_id.shape, n_words), dtype=torch.int64),
)
_normal_op = register(
    "philox_normal(Tensor sample_id, Tensor step, int seed, int n_values, ScalarType dtype) -> Tensor",
    _run_normal,
    lambda sample_id, step, seed, n_values, dtype: sample_id.new_empty((*sample_id.shape, n_values), dtype=dtype),
)
