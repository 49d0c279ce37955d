// float32 views of float32, float16 and bfloat16 arrays, a block at a time.
#pragma once

#include "isa.h"
#include "kernels.h"

namespace pgraft::PGRAFT_ISA {

constexpr int kBlock = 1024;  // values; a few blocks stay in the first-level cache

// Half precision in integers, for processors without instructions for it; loops over these vectorise.
inline float half_to_float(uint16_t half) {
  const uint32_t rest = half & 0x7FFFu;
  // Moved to the place of a float's bits, a half is too small by 2^112, also where it is subnormal.
  const uint32_t scaled = as<uint32_t>(as<float>(rest << 13) * 0x1p112f);
  const uint32_t special = rest >= 0x7C00u ? 0x7F800000u : 0u;
  return as<float>(scaled | special | static_cast<uint32_t>(half & 0x8000u) << 16);
}

inline uint16_t float_to_half(float value) {
  const uint32_t sign = as<uint32_t>(value) & 0x80000000u, size = as<uint32_t>(value) ^ sign;
  // Below 2^-14 the last bit of a half is 2^-24, that of a float in [1/2, 1): the sum rounds there.
  const uint32_t small = as<uint32_t>(as<float>(size) + 0.5f) - 0x3F000000u;
  const uint32_t usual = (size - (112u << 23) + 0x0FFFu + (size >> 13 & 1u)) >> 13;
  const uint32_t finite = size < 0x38800000u ? small : usual;
  const uint32_t large = size > 0x7F800000u ? 0x7E00u : 0x7C00u;
  return static_cast<uint16_t>((size >= 0x477FF000u ? large : finite) | sign >> 16);
}

inline float bfloat_to_float(uint16_t value) { return as<float>(static_cast<uint32_t>(value) << 16); }

inline uint16_t float_to_bfloat(float value) {
  const uint32_t bits = as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

inline void read_half(const uint16_t* in, int n, float* out) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) store(out + i, _mm512_cvtph_ps(load<__m256i>(in + i)));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) store(out + i, _mm256_cvtph_ps(load<__m128i>(in + i)));
#endif
  for (; i < n; ++i) out[i] = half_to_float(in[i]);
}

inline void write_half(const float* in, int n, uint16_t* out) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) store(out + i, _mm512_cvtps_ph(load<__m512>(in + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) store(out + i, _mm256_cvtps_ph(load<__m256>(in + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) out[i] = float_to_half(in[i]);
}

// Values first ... first + n - 1 as float32: in place for float32, else through `buffer`.
inline const float* read(const void* source, DType type, int64_t first, int n, float* buffer) {
  if (type == kFloat32) return static_cast<const float*>(source) + first;
  const uint16_t* in = static_cast<const uint16_t*>(source) + first;
  if (type == kFloat16)
    read_half(in, n, buffer);
  else
    for (int i = 0; i < n; ++i) buffer[i] = bfloat_to_float(in[i]);
  return buffer;
}

// Where to compute n values that go to target[first ...]: in place for float32, else `buffer`; then `write`.
inline float* place(void* target, DType type, int64_t first, float* buffer) {
  return type == kFloat32 ? static_cast<float*>(target) + first : buffer;
}

// Round to nearest even; nothing to do for float32 computed in place.
inline void write(const float* values, void* target, DType type, int64_t first, int n) {
  if (type == kFloat32) {
    float* out = static_cast<float*>(target) + first;
    if (out != values) std::memcpy(out, values, sizeof(float) * n);
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(target) + first;
  if (type == kFloat16)
    write_half(values, n, out);
  else
    for (int i = 0; i < n; ++i) out[i] = float_to_bfloat(values[i]);
}

}  // namespace pgraft::PGRAFT_ISA
