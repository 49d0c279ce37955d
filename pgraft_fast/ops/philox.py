"""Philox4x32-10 counter-based random numbers, eager reference in plain torch.

The generator is a bijection of a 128-bit counter under a 64-bit key, so any number of a trajectory can
be computed alone, in any order and on any device. Source: Salmon, Moraes, Dror, Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011; known-answer vectors from Random123.

Only additions, products, divisions and square roots that IEEE 754 rounds correctly are used, each as an
operation of its own, so the result does not depend on vector width, tail handling or device.
"""

import math

import torch
from torch import Tensor

_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10

# log(f) = 2 s (1 + s^2/3 + s^4/5 + ...), s = (f - 1) / (f + 1), |s| <= 0.172: error below 2e-12.
_LOG_SERIES = [1.0 / (2 * k + 1) for k in range(7)]
# Taylor series on [-pi/4, pi/4]: error below 1e-13.
_SIN_SERIES = [(-1) ** k / math.factorial(2 * k + 1) for k in range(7)]
_COS_SERIES = [(-1) ** k / math.factorial(2 * k) for k in range(8)]


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
    n_blocks = -(-n_words // 4)
    sample_id, step = torch.broadcast_tensors(sample_id, step.to(sample_id.device))
    shape = (*sample_id.shape, n_blocks)
    block = torch.arange(n_blocks, device=sample_id.device).expand(shape)
    row = step.unsqueeze(-1).expand(shape)
    low = (sample_id & _MASK).unsqueeze(-1).expand(shape)
    high = ((sample_id >> 32) & _MASK).unsqueeze(-1).expand(shape)
    words = philox4x32((block, row, low, high), (seed & _MASK, (seed >> 32) & _MASK))
    return torch.stack(words, dim=-1).flatten(-2)[..., :n_words]


def words_to_uniform(words: Tensor) -> Tensor:
    """(w + 1/2) / 2^32 in float64: exact, and never 0 or 1."""
    return words.to(torch.float64).add_(0.5).mul_(2.0**-32)


def words_to_normal(words: Tensor) -> Tensor:
    """Box-Muller on neighbouring words: z = sqrt(-2 log u) (cos 2 pi v, sin 2 pi v), in float64.

    words: (..., n) int64 with n even. Returns (..., n) float64.
    """
    radius = _log_uniform(words[..., 0::2]).mul_(-2.0).sqrt_()
    cosine, sine = _cos_sin_turn(words[..., 1::2])
    return torch.stack((cosine.mul_(radius), sine.mul_(radius)), dim=-1).flatten(-2)


def philox_normal(
    seed: int, sample_id: Tensor, step: Tensor, n_values: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers keyed by (seed, sample, step), (..., n_values) in `dtype`.

    Computed in float64 and rounded once. Shapes as in `philox_words`.
    """
    n_even = n_values + n_values % 2
    words = philox_words(seed, sample_id, step, n_even)
    return words_to_normal(words)[..., :n_values].to(dtype)


def _horner(x: Tensor, series: list[float]) -> Tensor:
    total = torch.full_like(x, series[-1])
    for coefficient in reversed(series[:-1]):
        total.mul_(x).add_(coefficient)
    return total


def _log_uniform(words: Tensor) -> Tensor:
    """log((w + 1/2) / 2^32), from exponent and mantissa."""
    mantissa, exponent = torch.frexp(words_to_uniform(words))
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa * 2.0, mantissa)
    exponent = exponent - low.to(exponent.dtype)
    s = (mantissa - 1.0).div_(mantissa + 1.0)
    series = _horner(s * s, _LOG_SERIES).mul_(s).mul_(2.0)
    return series.add_(exponent.to(torch.float64).mul_(math.log(2.0)))


def _cos_sin_turn(words: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi (w + 1/2) / 2^32: the nearest quarter turn is taken off in integers."""
    quarter = (words + 2**29) >> 30
    rest = (words - (quarter << 30)).to(torch.float64).add_(0.5).mul_(math.pi * 2.0**-31)
    square = rest * rest
    cosine = _horner(square, _COS_SERIES)
    sine = _horner(square, _SIN_SERIES).mul_(rest)
    odd = (quarter & 1).bool()
    cosine, sine = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    cosine_negative = ((quarter + 1) & 2).bool()
    sine_negative = (quarter & 2).bool()
    return torch.where(cosine_negative, -cosine, cosine), torch.where(sine_negative, -sine, sine)
