// Sets of candidates as bits, and as the bytes of a bool tensor.
#pragma once

#include <algorithm>

#include "isa.h"

namespace pgraft::PGRAFT_ISA {

constexpr uint64_t kOnes = 0x0101010101010101ull;

// Bit l is the truth of lane l (all its bits are the same).
inline uint64_t lane_bits(VecI mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(as<__m512i>(mask));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(PGRAFT_MM(movemask_ps)(as<Floats>(mask)));
#else
  uint64_t bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= static_cast<uint64_t>(mask[l] & 1) << l;
  return bits;
#endif
}

inline uint64_t load_bytes(const bool* mask, int n) {
  uint64_t bytes = 0;
  std::memcpy(&bytes, mask, n);
  return bytes;
}

// Bits of eight bytes that are 0 or 1: the product moves byte i to bit 56 + i.
inline uint64_t byte_bits(uint64_t bytes) { return (bytes * 0x0102040810204080ull) >> 56; }

inline uint64_t bits_of(const bool* mask, int n) {
#if defined(__AVX512BW__)
  if (n == 64) {
    const __m512i bytes = load<__m512i>(mask);
    return _mm512_test_epi8_mask(bytes, bytes);
  }
#endif
  uint64_t bits = 0;
  int i = 0;
  for (; i + 8 <= n; i += 8) bits |= byte_bits(load_bytes(mask + i, 8)) << i;
  if (i < n) bits |= byte_bits(load_bytes(mask + i, n - i)) << i;
  return bits;
}

// mask[i] = bit i, for i < n <= 64.
inline void write_bits(uint64_t bits, bool* mask, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const uint64_t one_each = ((bits >> i & 0xFF) * kOnes) & 0x8040201008040201ull;
    const uint64_t bytes = ((one_each + 0x7F * kOnes) >> 7) & kOnes;
    std::memcpy(mask + i, &bytes, 8);
  }
  for (; i < n; ++i) mask[i] = bits >> i & 1;
}

inline int64_t count_true(const bool* mask, int64_t n) {
  int64_t count = 0, i = 0;
  for (; i + 8 <= n; i += 8) count += static_cast<int64_t>((load_bytes(mask + i, 8) * kOnes) >> 56);
  for (; i < n; ++i) count += mask[i];
  return count;
}

// index[at ...] = first + the set bits, as far as `capacity` goes. Returns the place after the last.
inline int64_t write_index(uint64_t bits, int64_t first, int64_t at, int64_t* index, int64_t capacity) {
  for (; bits != 0 && at < capacity; bits &= bits - 1) index[at++] = first + __builtin_ctzll(bits);
  return at;
}

// index[at ...] = flat positions of the true entries of mask[begin ... end - 1].
inline void pack(const bool* mask, int64_t begin, int64_t end, int64_t at, int64_t* index, int64_t capacity) {
  for (int64_t low = begin; low < end && at < capacity; low += 64)
    at = write_index(bits_of(mask + low, static_cast<int>(std::min<int64_t>(64, end - low))), low, at, index, capacity);
}

}  // namespace pgraft::PGRAFT_ISA
