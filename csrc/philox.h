// Philox4x32-10 on many counters at once; see pgraft_fast/ops/philox.py for the formulas and sources.
#pragma once

#include "isa.h"

namespace pgraft::PGRAFT_ISA {

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kGroups = 2;  // vectors of counters worked in step: one computes while the other waits
constexpr int kCounters = kGroups * kLanes;
constexpr int kBlockValues = 4 * kCounters;

// Of group g, words w[g][0 ... 3] of kLanes counters.
struct Words {
  VecU w[kGroups][4];
};

// A word of each counter in the low half of a 64-bit lane: v[2 g] for the even lanes of group g, v[2 g + 1] for odd.
// High halves hold anything; the 32-bit multiplication does not read them, so nothing is masked on the way.
struct Halves {
  VecU64 v[2 * kGroups];
};

// The stream of one (seed, sample, step): block j holds words 4 j ... 4 j + 3.
struct Stream {
  uint32_t step, id_low, id_high, key_low, key_high;
};

inline Stream make_stream(int64_t seed, int64_t sample_id, int64_t step) {
  return {static_cast<uint32_t>(step), static_cast<uint32_t>(sample_id), static_cast<uint32_t>(sample_id >> 32),
          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

inline uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

template <class F>
inline Halves each(const F& f) {
  Halves out;
#pragma GCC unroll 4
  for (int i = 0; i < 2 * kGroups; ++i) out.v[i] = f(i);
  return out;
}

inline Halves same(uint64_t word) {
  return each([=](int) { return VecU64{} + word; });
}

inline Halves multiply(const Halves& a, uint32_t factor) {
  return each([&](int i) { return multiply_even(a.v[i], VecU64{} + factor); });
}

inline Halves mix(const Halves& product, const Halves& word, VecU64 key) {
  return each([&](int i) { return xor3(product.v[i] >> 32, word.v[i], key); });
}

// Of every round.
struct Keys {
  VecU64 low[10], high[10];

  explicit Keys(const Stream& stream) {
    for (int round = 0; round < 10; ++round) {
      low[round] = VecU64{} + (stream.key_low + round * kWeyl0);
      high[round] = VecU64{} + (stream.key_high + round * kWeyl1);
    }
  }
};

// Rounds first ... 9 of a counter (c0, c1, c2, c3).
inline Words rounds(const Keys& keys, Halves c0, Halves c1, Halves c2, Halves c3, int first) {
#pragma GCC unroll 10
  for (int round = first; round < 10; ++round) {
    const Halves product0 = multiply(c0, kMultiplier0), product1 = multiply(c2, kMultiplier1);
    c0 = mix(product1, c1, keys.low[round]);
    c2 = mix(product0, c3, keys.high[round]);
    c1 = product1;
    c3 = product0;
  }
  Words out;
  for (int g = 0; g < kGroups; ++g) {
    const int even = 2 * g, odd = 2 * g + 1;
    out.w[g][0] = join_halves(c0.v[even], c0.v[odd]);
    out.w[g][1] = join_halves(c1.v[even], c1.v[odd]);
    out.w[g][2] = join_halves(c2.v[even], c2.v[odd]);
    out.w[g][3] = join_halves(c3.v[even], c3.v[odd]);
  }
  return out;
}

// Makes blocks of one stream. What is the same in every lane through the first two rounds is computed once.
struct Generator {
  Keys keys;
  Halves id_high, c1, c3;
  VecU64 c2;
  VecU order;

  explicit Generator(const Stream& stream) : keys(stream), id_high(same(stream.id_high)), order(block_order()) {
    const uint32_t c0 = high_product(stream.id_low, kMultiplier1) ^ stream.step ^ stream.key_low;
    c1 = same(stream.id_low * kMultiplier1);
    c2 = VecU64{} + (high_product(c0, kMultiplier0) ^ (stream.key_high + kWeyl1));
    c3 = same(c0 * kMultiplier0);
  }

  // Words of blocks first ... first + kCounters - 1, each group in the order of block_order().
  Words operator()(uint32_t first) const {
    const Halves block = each([&](int i) {
      const VecU64 lanes = as<VecU64>(order + (first + static_cast<uint32_t>(i / 2 * kLanes)));
      return i % 2 == 0 ? lanes : lanes >> 32;
    });
    const Halves product0 = multiply(block, kMultiplier0);
    const Halves product1 = multiply(mix(product0, id_high, keys.high[0]), kMultiplier1);
    const Halves next_c2 = each([&](int i) { return product0.v[i] ^ c2; });
    return rounds(keys, mix(product1, c1, keys.low[1]), product1, next_c2, c3, 2);
  }
};

// Counters that do not follow one another: c[i][lane] is word i of the counter of that lane.
struct Counters {
  uint32_t c[4][kCounters];

  void set(int lane, uint32_t block, int64_t sample_id, int64_t step) {
    c[0][lane] = block;
    c[1][lane] = static_cast<uint32_t>(step);
    c[2][lane] = static_cast<uint32_t>(sample_id);
    c[3][lane] = static_cast<uint32_t>(sample_id >> 32);
  }

  Words words(const Keys& keys) const {
    Halves start[4];
    for (int word = 0; word < 4; ++word)
      start[word] = each([&](int i) {
        const VecU64 lanes = load<VecU64>(c[word] + i / 2 * kLanes);
        return i % 2 == 0 ? lanes : lanes >> 32;
      });
    return rounds(keys, start[0], start[1], start[2], start[3], 0);
  }
};

// Values first ... first + count - 1 of a stream. make(words, out) turns kCounters blocks into kBlockValues values.
template <class T, class Make>
inline void fill(const Stream& stream, int64_t first, int64_t count, T* out, const Make& make) {
  const Generator generator(stream);
  int64_t skip = first % 4;
  T buffer[kBlockValues];
  for (int64_t block = first / 4; count > 0; block += kCounters) {
    const Words words = generator(static_cast<uint32_t>(block));
    if (skip == 0 && count >= kBlockValues) {
      make(words, out);
      out += kBlockValues;
      count -= kBlockValues;
    } else {
      make(words, buffer);
      const int64_t take = count < kBlockValues - skip ? count : kBlockValues - skip;
      std::memcpy(out, buffer + skip, sizeof(T) * take);
      out += take;
      count -= take;
      skip = 0;
    }
  }
}

inline void fill_words(const Stream& stream, int64_t first, int64_t count, uint32_t* out) {
  fill(stream, first, count, out, [](const Words& words, uint32_t* to) {
    for (int g = 0; g < kGroups; ++g)
      store_blocks(to + 4 * g * kLanes, words.w[g][0], words.w[g][1], words.w[g][2], words.w[g][3]);
  });
}

}  // namespace pgraft::PGRAFT_ISA
