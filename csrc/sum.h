// Sums in a fixed order, the same on every number of threads.
#pragma once

#include "isa.h"

namespace pgraft::PGRAFT_ISA {

// Sum of f(i) for i < n in a fixed order that vectorises: 16 running sums, joined in double. f gives float, which is
// enough within a block, or double.
template <class F>
inline double sum_of(int n, const F& f) {
  constexpr int kSums = 16;
  decltype(f(0)) sums[kSums] = {};
  int i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int l = 0; l < kSums; ++l) sums[l] = sums[l] + f(i + l);
  double total = 0.0;
  for (int l = 0; l < kSums; ++l) total += sums[l];
  for (; i < n; ++i) total += f(i);
  return total;
}

}  // namespace pgraft::PGRAFT_ISA
