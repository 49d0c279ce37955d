// Vectors of one instruction set. Each .cpp that includes this is compiled once per PGRAFT_ISA, in a namespace of
// that name, so nothing of one instruction set can be linked into another.
//
// GCC's vector extensions give arithmetic, comparison and blending; only what they lack is spelled in intrinsics.
// Products and sums are never contracted (-ffp-contract=off): float results are those of the eager reference.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
// GCC's own headers leave a do-not-care operand uninitialised.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the even 32-bit lanes are taken for the low halves");

// PGRAFT_MM(add_ps) is the intrinsic of this width.
#if defined(__AVX512F__)
#define PGRAFT_BYTES 64
#define PGRAFT_MM(name) _mm512_##name
#elif defined(__AVX2__)
#define PGRAFT_BYTES 32
#define PGRAFT_MM(name) _mm256_##name
#else
#define PGRAFT_BYTES 16
#define PGRAFT_MM(name) _mm_##name
#endif

namespace pgraft::PGRAFT_ISA {

#if defined(__AVX512F__)
typedef __m512 Floats;
typedef __m512d Doubles;
typedef __m512i Integers;
#elif defined(__AVX2__)
typedef __m256 Floats;
typedef __m256d Doubles;
typedef __m256i Integers;
#elif defined(__x86_64__)
typedef __m128 Floats;
typedef __m128d Doubles;
typedef __m128i Integers;
#endif

constexpr int kLanes = PGRAFT_BYTES / 4;
constexpr int kQuads = kLanes / 4;  // 128-bit parts of a vector

typedef float VecF __attribute__((vector_size(PGRAFT_BYTES)));
typedef int32_t VecI __attribute__((vector_size(PGRAFT_BYTES)));
typedef uint32_t VecU __attribute__((vector_size(PGRAFT_BYTES)));
typedef uint64_t VecU64 __attribute__((vector_size(PGRAFT_BYTES)));

template <class To, class From>
inline To as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &value, sizeof(To));
  return out;
}

inline VecF splat(float value) { return VecF{} + value; }

template <class Vec>
inline Vec load(const void* source) {
  Vec out;
  std::memcpy(&out, source, sizeof(Vec));
  return out;
}

template <class Vec>
inline void store(void* target, Vec value) {
  std::memcpy(target, &value, sizeof(Vec));
}

// 64-bit products of the even 32-bit lanes; the odd ones are not read.
inline VecU64 multiply_even(VecU64 a, VecU64 b) {
#if defined(__x86_64__)
  return as<VecU64>(PGRAFT_MM(mul_epu32)(as<Integers>(a), as<Integers>(b)));
#else
  return (a & 0xFFFFFFFFull) * (b & 0xFFFFFFFFull);
#endif
}

inline VecU64 xor3(VecU64 a, VecU64 b, VecU64 c) {
#if defined(__AVX512F__)
  return as<VecU64>(_mm512_ternarylogic_epi64(as<__m512i>(a), as<__m512i>(b), as<__m512i>(c), 0x96));
#else
  return a ^ b ^ c;
#endif
}

// Lane 2 i from the low half of even[i], lane 2 i + 1 from that of odd[i].
inline VecU join_halves(VecU64 even, VecU64 odd) {
#if defined(__AVX512F__)
  return as<VecU>(_mm512_mask_shuffle_epi32(as<__m512i>(even), 0xAAAA, as<__m512i>(odd), _MM_PERM_CCAA));
#elif defined(__AVX2__)
  return as<VecU>(_mm256_blend_epi32(as<__m256i>(even), as<__m256i>(odd << 32), 0xAA));
#else
  return as<VecU>((even & 0xFFFFFFFFull) | (odd << 32));
#endif
}

inline VecF square_root(VecF value) {
#if defined(__x86_64__)
  return as<VecF>(PGRAFT_MM(sqrt_ps)(as<Floats>(value)));
#else
  for (int l = 0; l < kLanes; ++l) value[l] = std::sqrt(value[l]);
  return value;
#endif
}

inline VecF to_float(VecI value) { return __builtin_convertvector(value, VecF); }

// Exact halves, one rounding: the same as converting the unsigned word.
inline VecF to_float_unsigned(VecU value) {
#if defined(__AVX512F__)
  return as<VecF>(_mm512_cvtepu32_ps(as<__m512i>(value)));
#else
  const VecF high = to_float(as<VecI>(value >> 16)) * 65536.0f;
  return high + to_float(as<VecI>(value & 0xFFFFu));
#endif
}

// Change the sign where bit 31 of `bits` is set.
inline VecF flip_sign(VecF value, VecU bits) {
#if defined(__AVX512F__)
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);
  return as<VecF>(_mm512_ternarylogic_epi32(as<__m512i>(value), as<__m512i>(bits), sign, 0x78));
#else
  return as<VecF>(as<VecU>(value) ^ (bits & 0x80000000u));
#endif
}

// Which block of four values each lane makes: neighbours stand in different 128-bit parts, so that transposing within
// the parts, which is cheap, puts them side by side.
inline VecU block_order() {
  VecU order{};
  for (int l = 0; l < kLanes; ++l) order[l] = static_cast<uint32_t>(l % 4 * kQuads + l / 4);
  return order;
}

inline int lane_of_block(int block) { return block % kQuads * 4 + block / kQuads; }

// out[4 b + i] = v_i of the lane that makes block b.
template <class Vec, class T>
inline void store_blocks(T* out, Vec v0, Vec v1, Vec v2, Vec v3) {
#if defined(__x86_64__)
  const auto low = [](Vec a, Vec b) { return as<Doubles>(PGRAFT_MM(unpacklo_ps)(as<Floats>(a), as<Floats>(b))); };
  const auto high = [](Vec a, Vec b) { return as<Doubles>(PGRAFT_MM(unpackhi_ps)(as<Floats>(a), as<Floats>(b))); };
  const Doubles a = low(v0, v1), b = low(v2, v3), c = high(v0, v1), d = high(v2, v3);
  store(out, PGRAFT_MM(unpacklo_pd)(a, b));
  store(out + kLanes, PGRAFT_MM(unpackhi_pd)(a, b));
  store(out + 2 * kLanes, PGRAFT_MM(unpacklo_pd)(c, d));
  store(out + 3 * kLanes, PGRAFT_MM(unpackhi_pd)(c, d));
#else
  for (int b = 0; b < kLanes; ++b) {
    const int lane = lane_of_block(b);
    out[4 * b] = v0[lane], out[4 * b + 1] = v1[lane], out[4 * b + 2] = v2[lane], out[4 * b + 3] = v3[lane];
  }
#endif
}

}  // namespace pgraft::PGRAFT_ISA
