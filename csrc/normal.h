// Box-Muller on Philox words; see pgraft_fast/ops/philox.py, whose bits these are. Steps are rearranged only where the
// result is the same to the last bit.
#pragma once

#include <algorithm>

#include "philox.h"

namespace pgraft::PGRAFT_ISA {

// Two vectors worked in step: one computes while the other waits for its last result.
template <class Vec>
struct Two {
  Vec a, b;
};

#define PGRAFT_OPERATOR(op)                                                                                       \
  template <class Vec>                                                                                            \
  inline Two<Vec> operator op(Two<Vec> x, Two<Vec> y) {                                                           \
    return {x.a op y.a, x.b op y.b};                                                                              \
  }                                                                                                               \
  template <class Vec, class Scalar>                                                                              \
  inline Two<Vec> operator op(Two<Vec> x, Scalar y) {                                                             \
    return {x.a op y, x.b op y};                                                                                  \
  }
PGRAFT_OPERATOR(+)
PGRAFT_OPERATOR(-)
PGRAFT_OPERATOR(*)
PGRAFT_OPERATOR(/)
PGRAFT_OPERATOR(&)
PGRAFT_OPERATOR(^)
PGRAFT_OPERATOR(>>)
PGRAFT_OPERATOR(<<)
#undef PGRAFT_OPERATOR

typedef Two<VecF> TwoF;
typedef Two<VecI> TwoI;
typedef Two<VecU> TwoU;

template <class To, class From>
inline Two<To> as(Two<From> value) {
  return {as<To>(value.a), as<To>(value.b)};
}

inline TwoF choose(TwoI mask, TwoF yes, TwoF no) { return {mask.a ? yes.a : no.a, mask.b ? yes.b : no.b}; }
inline TwoF to_float(TwoI value) { return {to_float(value.a), to_float(value.b)}; }
inline TwoF to_float_unsigned(TwoU value) { return {to_float_unsigned(value.a), to_float_unsigned(value.b)}; }
inline TwoF square_root(TwoF value) { return {square_root(value.a), square_root(value.b)}; }
inline TwoF flip_sign(TwoF value, TwoU bits) { return {flip_sign(value.a, bits.a), flip_sign(value.b, bits.b)}; }

// log((w + 1/2) / 2^32).
inline TwoF log_uniform(TwoU word) {
  const TwoI near_one{word.a >= 0xB504F334u, word.b >= 0xB504F334u};
  // Near 1 the complement counts: 1 - u.
  const TwoF value = to_float_unsigned(word ^ as<VecU>(near_one)) + 0.5f;
  // value 2^-32 = m 2^exponent with m in [sqrt(1/2), sqrt(2)): 0x3F3504F4 is the least such m.
  const TwoI bits = as<VecI>(value) - (0x3F3504F4 + (32 << 23));
  const TwoF mantissa = as<VecF>((bits & 0x007FFFFF) + 0x3F3504F4);
  const TwoF shift = choose(near_one, TwoF{}, to_float(bits >> 23));
  const TwoF offset = choose(near_one, value * -0x1p-32f, mantissa - 1.0f);
  const TwoF s = offset / (offset + 2.0f);
  const TwoF square = s * s;
  const TwoF twice = s + s;
  TwoF tail = square * (1.0f / 9.0f) + (1.0f / 7.0f);
  tail = tail * square + (1.0f / 5.0f);
  tail = tail * square + (1.0f / 3.0f);
  tail = tail * square * twice;
  return shift * 0.693147182f + (twice + tail);
}

// cos and sin of 2 pi (w + 1/2) / 2^32. Bits 30 and 31 of w + 2^29 are the nearest quarter turn.
inline void cos_sin_turn(TwoU word, TwoF& cosine_out, TwoF& sine_out) {
  const TwoU quarter = word + 0x20000000u;
  // Four times the rest, its two top bits shifted out: 4 (rest + 1/2) (pi 2^-31 / 4).
  const TwoF angle = (to_float(as<VecI>(word << 2)) + 2.0f) * (1.46291807926715968e-9f / 4.0f);
  const TwoF square = angle * angle;
  TwoF cosine = square * static_cast<float>(-1.0 / 3628800.0) + static_cast<float>(1.0 / 40320.0);
  TwoF sine = square * static_cast<float>(1.0 / 362880.0) + static_cast<float>(-1.0 / 5040.0);
  cosine = cosine * square + static_cast<float>(-1.0 / 720.0);
  sine = sine * square + static_cast<float>(1.0 / 120.0);
  cosine = cosine * square + static_cast<float>(1.0 / 24.0);
  sine = sine * square + static_cast<float>(-1.0 / 6.0);
  cosine = cosine * square + -0.5f;
  sine = sine * square * angle + angle;
  cosine = cosine * square + 1.0f;
  const TwoU rest = quarter & 0x40000000u;
  const TwoI odd{rest.a != 0u, rest.b != 0u};
  // The cosine is negative in quarters 1 and 2, the sine in 2 and 3.
  cosine_out = flip_sign(choose(odd, sine, cosine), quarter + 0x40000000u);
  sine_out = flip_sign(choose(odd, cosine, sine), quarter);
}

inline void normal_blocks(const Words& words, float* out) {
  for (int g = 0; g < kGroups; ++g) {
    const VecU* w = words.w[g];
    TwoF cosine, sine;
    const TwoF radius = square_root(log_uniform({w[0], w[2]}) * -2.0f);
    cos_sin_turn({w[1], w[3]}, cosine, sine);
    cosine = cosine * radius;
    sine = sine * radius;
    store_blocks(out + 4 * g * kLanes, cosine.a, sine.a, cosine.b, sine.b);
  }
}

inline void fill_normal(const Stream& stream, int64_t first, int64_t count, float* out) {
  fill(stream, first, count, out, normal_blocks);
}

// Whole rows of n values, keyed by id[row] and step[row], with the counters of several rows in one vector.
inline void fill_rows(const int64_t* id, const int64_t* step, const Keys& keys, int64_t n, int64_t rows, float* out) {
  const int64_t blocks = (n + 3) / 4;
  float value[kBlockValues];
  for (int64_t low = 0; low < rows * blocks; low += kCounters) {
    const int count = static_cast<int>(std::min<int64_t>(kCounters, rows * blocks - low));
    Counters counters{};
    int64_t row = low / blocks, block = low % blocks;
    for (int i = 0; i < count; ++i) {
      counters.set(i / kLanes * kLanes + lane_of_block(i % kLanes), static_cast<uint32_t>(block), id[row], step[row]);
      if (++block == blocks) block = 0, ++row;
    }
    normal_blocks(counters.words(keys), value);
    row = low / blocks, block = low % blocks;
    for (int i = 0; i < count; ++i) {
      const int64_t take = std::min<int64_t>(4, n - 4 * block);
      for (int64_t l = 0; l < take; ++l) out[row * n + 4 * block + l] = value[4 * i + l];
      if (++block == blocks) block = 0, ++row;
    }
  }
}

}  // namespace pgraft::PGRAFT_ISA
