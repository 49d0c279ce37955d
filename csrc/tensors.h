// Tensors of torch's stable ABI as pointers and dtypes, and work split over its threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace pgraft {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// Values that are worth a thread of their own; splits fall on whole blocks of noise.
constexpr int64_t kGrain = 16384;

inline DType dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return kFloat16;
    case ScalarType::BFloat16: return kBFloat16;
    default: return kFloat32;
  }
}

inline DType dtype(const Optional& tensor) { return tensor.has_value() ? dtype(*tensor) : kFloat32; }

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
T* pointer(const Optional& tensor) {
  return tensor.has_value() ? pointer<T>(*tensor) : nullptr;
}

// A large new result is touched here for the first time: in pages of 2 MB that takes a five-hundredth of the faults.
// It is advice; where the system has no such pages nothing changes.
inline void ask_for_huge_pages(const Tensor& result, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  if (bytes < static_cast<int64_t>(2 * kPage)) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(result.mutable_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// f(begin, end) on pieces of [0, n) that are worth a thread each.
template <class F>
void split(int64_t n, int64_t grain, const F& f) {
  if (n <= grain)
    f(0, n);
  else
    torch::stable::parallel_for(0, n, grain, f);
}

// As `split`, for ranges of values: pieces begin on multiples of 64.
template <class F>
void split_values(int64_t n, int64_t grain, const F& f) {
  split((n + 63) / 64, grain / 64, [&](int64_t begin, int64_t end) { f(64 * begin, std::min(64 * end, n)); });
}

// f(sample, begin, end) on pieces of kGrain values of every sample; one empty piece for a sample without values.
template <class F>
void split_samples(int64_t batch, int64_t size, const F& f) {
  const int64_t parts = std::max<int64_t>(1, (size + kGrain - 1) / kGrain);
  split(batch * parts, std::max<int64_t>(1, kGrain * parts / std::max<int64_t>(1, size)),
        [&](int64_t first, int64_t last) {
          for (int64_t part = first; part < last; ++part) {
            const int64_t begin = part % parts * kGrain;
            f(part / parts, begin, std::min(begin + kGrain, size));
          }
        });
}

inline int64_t samples_a_thread(int64_t size) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)); }

}  // namespace pgraft
