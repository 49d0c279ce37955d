// One solver step, block by block: guidance, prediction of x_0, update, noise. See pgraft_fast/ops/solver_step.py.
#pragma once

#include <algorithm>
#include <vector>

#include "convert.h"
#include "normal.h"
#include "sum.h"

namespace pgraft::PGRAFT_ISA {

struct Update {
  float p, q, a, b, c, d;
  float guidance;
  float rescale, factor;  // guided <- rescale (guided factor) + (1 - rescale) guided
  float low, high, inverse;  // x_0 <- clamp(x_0, low, high) inverse
};

template <bool kGuide, bool kRescale, bool kClip, bool kPrevious, bool kNoise, bool kKeep>
inline void update_block(const Update& u, int n, const float* __restrict x, const float* __restrict out,
                         const float* __restrict null, const float* __restrict previous,
                         const float* __restrict noise, float* __restrict x_s, float* __restrict x_0) {
  for (int i = 0; i < n; ++i) {
    float g = out[i];
    if constexpr (kGuide) g = null[i] + u.guidance * (g - null[i]);
    if constexpr (kRescale) g = u.rescale * (g * u.factor) + (1.0f - u.rescale) * g;
    float clean = u.p * x[i] + u.q * g;
    if constexpr (kClip) {
      clean = clean < u.low ? u.low : clean;
      clean = clean > u.high ? u.high : clean;
      clean = clean * u.inverse;
    }
    float next = u.a * x[i] + u.b * clean;
    if constexpr (kPrevious) next = next + u.c * previous[i];
    if constexpr (kNoise) next = next + u.d * noise[i];
    x_s[i] = next;
    if constexpr (kKeep) x_0[i] = clean;
  }
}

template <bool... kFlags>
inline void dispatch_block(const Update& u, int n, const float* x, const float* out, const float* null,
                           const float* previous, const float* noise, float* x_s, float* x_0, bool rescale,
                           bool clip) {
  constexpr int kDone = sizeof...(kFlags);
  if constexpr (kDone == 6) {
    update_block<kFlags...>(u, n, x, out, null, previous, noise, x_s, x_0);
  } else {
    const bool flags[6] = {null != nullptr, rescale, clip, previous != nullptr, noise != nullptr, x_0 != nullptr};
    if (flags[kDone])
      dispatch_block<kFlags..., true>(u, n, x, out, null, previous, noise, x_s, x_0, rescale, clip);
    else
      dispatch_block<kFlags..., false>(u, n, x, out, null, previous, noise, x_s, x_0, rescale, clip);
  }
}

// Noise of memory positions first ... first + n - 1 of a sample, keyed by their place in C order.
inline void draw(const SolverStep& args, const Stream& stream, int64_t first, int n, float* out) {
  if (args.channels == 0) return fill_normal(stream, first, n, out);
  const int64_t channels = args.channels, plane = args.size / channels;
  const int64_t pixel = first / channels, pixels = (first + n + channels - 1) / channels - pixel;
  float line[kBlock + 1];
  for (int64_t c = 0; c < channels; ++c) {
    fill_normal(stream, c * plane + pixel, pixels, line);
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t position = (pixel + i) * channels + c - first;
      if (position >= 0 && position < n) out[position] = line[i];
    }
  }
}

inline Update make_update(const SolverStep& args) {
  const float* r = args.row;
  Update u{r[kP], r[kQ], r[kA], r[kB], r[kC], r[kD], args.guidance, args.rescale, 1.0f, 0.0f, 0.0f, 1.0f};
  if (args.previous == nullptr) u.b = u.b + u.c, u.c = 0.0f;
  if (args.clip > 0.0f) u.low = -args.clip, u.high = args.clip;
  return u;
}

inline bool draws(const SolverStep& args) { return args.row[kD] != 0.0f; }

// Values begin ... end - 1 of one sample; returns the sum of squares of the noise.
inline double step_range(const SolverStep& args, const Update& u, bool clip, int64_t sample, int64_t begin,
                         int64_t end, bool want_squares) {
  float in_x[kBlock], in_out[kBlock], in_null[kBlock], in_previous[kBlock], z[kBlock], to_x[kBlock], to_x_0[kBlock];
  const int64_t base = sample * args.size;
  const int64_t id = args.sample_id == nullptr ? sample : args.sample_id[sample];
  const Stream stream = make_stream(args.seed, id, static_cast<int64_t>(args.row[kNoise]));
  const bool use_previous = args.previous != nullptr && args.row[kC] != 0.0f;
  const int64_t slot = static_cast<int64_t>(args.row[kKeep]);
  double squares = 0.0;
  // Plain float32 goes in one sweep: short blocks would restart the prefetchers of every stream.
  const bool whole = args.x_type == kFloat32 && args.out_type == kFloat32 && !draws(args);
  const int64_t block = whole ? end - begin : kBlock;
  for (int64_t low = begin; low < end; low += block) {
    const int n = static_cast<int>(std::min(block, end - low));
    const int64_t at = base + low;
    const float* noise = nullptr;
    if (draws(args)) {
      if (args.noise != nullptr) {
        noise = read(args.noise, args.noise_type, at, n, z);
      } else {
        draw(args, stream, low, n, z);
        noise = z;
      }
      if (want_squares) squares += sum_of(n, [=](int i) { return double{noise[i]} * noise[i]; });
    }
    float* x_s = place(args.x_s, args.x_type, at, to_x);
    float* x_0 = args.x_0 == nullptr ? nullptr : place(args.x_0, args.x_type, at, to_x_0);
    dispatch_block<>(u, n, read(args.x, args.x_type, at, n, in_x), read(args.out, args.out_type, at, n, in_out),
                     args.out_null == nullptr ? nullptr : read(args.out_null, args.out_type, at, n, in_null),
                     use_previous ? read(args.previous, args.x_type, at, n, in_previous) : nullptr, noise, x_s, x_0,
                     u.rescale != 0.0f, clip);
    write(x_s, args.x_s, args.x_type, at, n);
    if (x_0 != nullptr) write(x_0, args.x_0, args.x_type, at, n);
    if (args.x_cut != nullptr && slot > 0)
      write(x_s, args.x_cut, args.x_type, (slot - 1) * args.batch * args.size + at, n);
  }
  return squares;
}

inline void solver_step_part(const SolverStep& args, int64_t sample, int64_t begin, int64_t end) {
  step_range(args, make_update(args), args.clip > 0.0f, sample, begin, end, false);
}

// Ratio of the standard deviations of the conditional and the guided output.
inline float rescale_factor(const SolverStep& args, int64_t sample) {
  float a[kBlock], b[kBlock];
  // Distances from a sample's first value, so that nothing cancels where all values are close.
  double sum[2] = {0, 0}, squares[2] = {0, 0}, origin[2] = {0, 0};
  for (int64_t low = 0; low < args.size; low += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, args.size - low));
    const float* out = read(args.out, args.out_type, sample * args.size + low, n, a);
    const float* null = read(args.out_null, args.out_type, sample * args.size + low, n, b);
    float guided[kBlock];
    for (int i = 0; i < n; ++i) guided[i] = null[i] + args.guidance * (out[i] - null[i]);
    const float* of[2] = {out, guided};
    for (int i = 0; i < 2; ++i) {
      if (low == 0) origin[i] = of[i][0];
      const auto distance = [value = of[i], from = origin[i]](int l) { return value[l] - from; };
      sum[i] += sum_of(n, distance);
      squares[i] += sum_of(n, [=](int l) { return distance(l) * distance(l); });
    }
  }
  const double size = static_cast<double>(args.size);
  const double spread = squares[0] - sum[0] * sum[0] / size, guided = squares[1] - sum[1] * sum[1] / size;
  return static_cast<float>(std::sqrt(std::max(spread, 0.0) / std::max(guided, 0.0)));
}

// The ratio-quantile of |x_0|, linear between neighbours, at least 1 and at most the limit.
inline float dynamic_limit(const SolverStep& args, const Update& u, int64_t sample) {
  std::vector<float> size(args.size);
  float in_x[kBlock], in_out[kBlock], in_null[kBlock], unused[kBlock];
  for (int64_t low = 0; low < args.size; low += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, args.size - low));
    const int64_t at = sample * args.size + low;
    dispatch_block<>(u, n, read(args.x, args.x_type, at, n, in_x), read(args.out, args.out_type, at, n, in_out),
                     args.out_null == nullptr ? nullptr : read(args.out_null, args.out_type, at, n, in_null), nullptr,
                     nullptr, unused, size.data() + low, u.rescale != 0.0f, false);
  }
  for (float& value : size) value = std::fabs(value);
  const double rank = static_cast<double>(args.ratio) * static_cast<double>(args.size - 1);
  const int64_t below = static_cast<int64_t>(rank);
  std::nth_element(size.begin(), size.begin() + below, size.end());
  const float low = size[below];
  const float high = below + 1 < args.size ? *std::min_element(size.begin() + below + 1, size.end()) : low;
  const float quantile = low + static_cast<float>(rank - static_cast<double>(below)) * (high - low);
  return std::min(std::max(quantile, 1.0f), args.limit);
}

inline void solver_step_sample(const SolverStep& args, int64_t sample) {
  Update u = make_update(args);
  bool clip = args.clip > 0.0f;
  if (u.rescale != 0.0f) u.factor = rescale_factor(args, sample);
  if (args.ratio > 0.0f) {
    const float limit = dynamic_limit(args, u, sample);
    u.low = -limit, u.high = limit, u.inverse = 1.0f / limit;
    clip = true;
  }
  const double squares = step_range(args, u, clip, sample, 0, args.size, args.log_prob != nullptr);
  if (args.log_prob == nullptr) return;
  const double log_scale = std::log(static_cast<double>(u.d)) + 0.91893853320467274178;  // + log(2 pi) / 2
  args.log_prob[sample] =
      draws(args) ? static_cast<float>(-0.5 * squares - static_cast<double>(args.size) * log_scale) : 0.0f;
}

}  // namespace pgraft::PGRAFT_ISA
