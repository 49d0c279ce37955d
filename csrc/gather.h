// Rows of one or two arrays by index, in one pass.
#pragma once

#include <algorithm>

#include "isa.h"
#include "kernels.h"

namespace pgraft::PGRAFT_ISA {

constexpr int64_t kAhead = 6144;                 // bytes asked for before they are needed
constexpr int64_t kStreamed = int64_t{4} << 20;  // bytes written; more would only push other data out of the caches
constexpr int64_t kLine = 64;

#if defined(__x86_64__)
inline void stream(char* target, Integers value) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(target), value);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(target), value);
#else
  _mm_stream_si128(reinterpret_cast<__m128i*>(target), value);
#endif
}
#endif

// A line that is not read again soon goes past the caches: without that it would first be read from memory.
template <bool kStream>
inline void copy_line(char* target, const char* source) {
#if defined(__x86_64__)
  for (int at = 0; at < kLine; at += PGRAFT_BYTES) {
    const Integers value = load<Integers>(source + at);
    if constexpr (kStream)
      stream(target + at, value);
    else
      store(target + at, value);
  }
#else
  std::memcpy(target, source, kLine);
#endif
}

template <class Copy>
inline void each_row(const GatherRows& args, const GatherPart& part, int64_t begin, int64_t end, const Copy& copy) {
  static const char zeros[4096] = {};
  const int64_t ahead = std::clamp<int64_t>(kAhead / std::max<int64_t>(1, part.bytes), 2, 32);
  for (int64_t i = begin; i < end; ++i) {
    // To the second-level cache: as many lines as this would crowd the first.
    if (i + ahead < end && args.index[i + ahead] >= 0) {
      const char* later = part.source + args.index[i + ahead] * part.bytes;
      for (int64_t at = 0; at < std::min<int64_t>(part.bytes, 1024); at += kLine) __builtin_prefetch(later + at, 0, 2);
    }
    char* target = part.target + i * part.bytes;
    if (args.index[i] >= 0)
      copy(target, part.source + args.index[i] * part.bytes, part.bytes);
    else
      for (int64_t at = 0; at < part.bytes; at += sizeof(zeros))
        copy(target + at, zeros, std::min<int64_t>(part.bytes - at, sizeof(zeros)));
  }
}

template <bool kStream>
inline void copy_lines(char* target, const char* source, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) copy_line<kStream>(target + at, source + at);
}

template <int kBytes>
inline void copy_words(char* target, const char* source, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kBytes) std::memcpy(target + at, source + at, kBytes);
}

inline void gather_part(const GatherRows& args, const GatherPart& part, int64_t begin, int64_t end) {
  const int64_t bytes = part.bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(part.target) % kLine == 0;
  if (bytes % kLine == 0 && aligned && args.rows * bytes >= kStreamed) {
    each_row(args, part, begin, end, copy_lines<true>);
#if defined(__x86_64__)
    _mm_sfence();  // streamed lines are seen by others only in no set order
#endif
  } else if (bytes % kLine == 0) {
    each_row(args, part, begin, end, copy_lines<false>);
  } else if (bytes % 16 == 0) {
    each_row(args, part, begin, end, copy_words<16>);
  } else if (bytes % 8 == 0) {
    each_row(args, part, begin, end, copy_words<8>);
  } else if (bytes % 4 == 0) {
    each_row(args, part, begin, end, copy_words<4>);
  } else {
    each_row(args, part, begin, end, copy_words<1>);
  }
}

inline void gather_rows(const GatherRows& args, int64_t begin, int64_t end) {
  for (const GatherPart& part : args.part)
    if (part.target != nullptr) gather_part(args, part, begin, end);
}

}  // namespace pgraft::PGRAFT_ISA
