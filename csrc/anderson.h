// Anderson mixing of fixed-point iterates, sample by sample. See pgraft_fast/ops/anderson_mix.py.
#pragma once

#include "elementwise.h"

namespace pgraft::PGRAFT_ISA {

constexpr int kMaxHistory = 8;
constexpr int kDotBlock = 256;  // the history of a block, as double, stays in the first-level cache

// Solve (G + ridge tr(G) / m I) c = 1 by Cholesky, then divide by the sum: the weights of least residual.
inline void mixing_weights(int m, double gram[kMaxHistory][kMaxHistory], double ridge, double* weight) {
  double trace = 0.0;
  for (int i = 0; i < m; ++i) trace += gram[i][i];
  // A residual of exactly zero everywhere leaves nothing to weigh: the newest iterate is the answer.
  if (!(trace > 0.0)) {
    for (int i = 0; i < m; ++i) weight[i] = i == m - 1 ? 1.0 : 0.0;
    return;
  }
  double factor[kMaxHistory][kMaxHistory] = {};
  for (int i = 0; i < m; ++i)
    for (int j = 0; j <= i; ++j) {
      double rest = gram[i][j] / trace + (i == j ? ridge : 0.0);
      for (int l = 0; l < j; ++l) rest -= factor[i][l] * factor[j][l];
      factor[i][j] = i == j ? std::sqrt(std::max(rest, 1e-300)) : rest / factor[j][j];
    }
  for (int i = 0; i < m; ++i) {
    double rest = 1.0;
    for (int l = 0; l < i; ++l) rest -= factor[i][l] * weight[l];
    weight[i] = rest / factor[i][i];
  }
  double sum = 0.0;
  for (int i = m - 1; i >= 0; --i) {
    for (int l = i + 1; l < m; ++l) weight[i] -= factor[l][i] * weight[l];
    weight[i] /= factor[i][i];
    sum += weight[i];
  }
  for (int i = 0; i < m; ++i) weight[i] /= sum;
}

inline void add_scaled(int n, float w, const float* __restrict from, float* __restrict to) {
  for (int l = 0; l < n; ++l) to[l] = to[l] + w * from[l];
}

inline void anderson_mix(const AndersonMix& args, int64_t begin, int64_t end) {
  const int m = static_cast<int>(args.history);
  const int64_t stride = args.batch * args.size;
  for (int64_t sample = begin; sample < end; ++sample) {
    double gram[kMaxHistory][kMaxHistory] = {}, weight[kMaxHistory];
    for (int64_t low = 0; low < args.size; low += kDotBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kDotBlock, args.size - low));
      double r[kMaxHistory][kDotBlock];
      for (int i = 0; i < m; ++i) {
        const float* from = args.residual + i * stride + sample * args.size + low;
        for (int l = 0; l < n; ++l) r[i][l] = from[l];
      }
      for (int i = 0; i < m; ++i)
        for (int j = 0; j <= i; ++j)
          gram[i][j] += sum_of(n, [a = r[i], b = r[j]](int l) { return a[l] * b[l]; });
    }
    mixing_weights(m, gram, args.ridge, weight);
    float w[kMaxHistory];
    for (int i = 0; i < m; ++i) w[i] = static_cast<float>(weight[i]);
    for (int64_t low = 0; low < args.size; low += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, args.size - low));
      const int64_t at = sample * args.size + low;
      float* y = args.y + at;
      const float* next = args.next + at;
      for (int l = 0; l < n; ++l) y[l] = w[0] * next[l];
      for (int i = 1; i < m; ++i, next += stride) add_scaled(n, w[i], next + stride, y);
    }
  }
}

}  // namespace pgraft::PGRAFT_ISA
