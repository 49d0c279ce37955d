// Kernels that stream over the values of samples: noise, training targets, weighted errors, fixed points.
#pragma once

#include <algorithm>

#include "convert.h"
#include "normal.h"
#include "sum.h"

namespace pgraft::PGRAFT_ISA {

inline void philox_normal(const int64_t* id, const int64_t* step, int64_t seed, int64_t n, DType type, void* out,
                          int64_t begin, int64_t end) {
  float buffer[kBlock];
  const Keys keys(make_stream(seed, 0, 0));
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / n, first = at % n;
    int count = static_cast<int>(std::min({n - first, end - at, static_cast<int64_t>(kBlock)}));
    const int64_t rows = std::min<int64_t>(kBlock, end - at) / n;
    if (first == 0 && n < kBlockValues && rows > 1) count = static_cast<int>(rows * n);
    float* values = place(out, type, at, buffer);
    if (count > n)
      fill_rows(id + row, step + row, keys, n, rows, values);
    else
      fill_normal(make_stream(seed, id[row], step[row]), first, count, values);
    write(values, out, type, at, count);
    at += count;
  }
}

inline void philox_words(const int64_t* id, const int64_t* step, int64_t seed, int64_t n, int32_t* out, int64_t begin,
                         int64_t end) {
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / n, first = at % n, count = std::min(n - first, end - at);
    fill_words(make_stream(seed, id[row], step[row]), first, count, reinterpret_cast<uint32_t*>(out) + at);
    at += count;
  }
}

// Values begin ... end - 1 of one sample; its weight is written with the first piece.
inline void partial_noise(const PartialNoise& args, int64_t sample, int64_t begin, int64_t end) {
  const double* level = args.levels + 4 * sample;
  const double alpha_s = level[0], sigma_s = level[1], c = level[2], d = level[3];
  const double ratio = alpha_s / args.alpha_cut, carried = ratio * args.sigma_cut;
  const double root = std::sqrt(std::max(sigma_s * sigma_s - carried * carried, 0.0)), w = root / sigma_s;
  const float a = static_cast<float>(ratio), b = static_cast<float>(root);
  const float target_x = static_cast<float>(w * c / args.alpha_cut);
  const float target_e =
      static_cast<float>(d - c * ratio * args.sigma_cut * args.sigma_cut / (args.alpha_cut * sigma_s));
  if (begin == 0) args.weight[sample] = static_cast<float>(w);
  const int64_t id = args.sample_id == nullptr ? sample : args.sample_id[sample];
  float in[kBlock], z[kBlock], to_x[kBlock], to_target[kBlock];
  for (int64_t low = begin; low < end; low += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, end - low));
    const int64_t at = sample * args.size + low;
    const float* x = read(args.x, args.type, at, n, in);
    const float* e = z;
    if (args.noise != nullptr)
      e = read(args.noise, args.noise_type, at, n, z);
    else
      fill_normal(make_stream(args.seed, id, args.step[sample]), low, n, z);
    float* x_s = place(args.x_s, args.type, at, to_x);
    float* target = place(args.target, args.type, at, to_target);
    for (int i = 0; i < n; ++i) {
      const float value = x[i], noise = e[i];
      x_s[i] = a * value + b * noise;
      target[i] = target_x * value + target_e * noise;
    }
    write(x_s, args.x_s, args.type, at, n);
    write(target, args.target, args.type, at, n);
  }
}

inline void weighted_error(const WeightedError& args, int64_t begin, int64_t end) {
  float in_out[kBlock], in_target[kBlock];
  for (int64_t sample = begin; sample < end; ++sample) {
    const float w = args.weight[sample];
    double total = 0.0;
    for (int64_t low = 0; low < args.size; low += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, args.size - low));
      const int64_t at = sample * args.size + low;
      const float* out = read(args.out, args.out_type, at, n, in_out);
      const float* target = read(args.target, args.target_type, at, n, in_target);
      total += sum_of(n, [=](int i) {
        const float error = w * out[i] - target[i];
        return error * error;
      });
    }
    args.loss[sample] = static_cast<float>(total / static_cast<double>(args.size));
  }
}

inline void weighted_error_grad(const WeightedError& args, int64_t begin, int64_t end) {
  float in_out[kBlock], in_target[kBlock], to[kBlock];
  for (int64_t at = begin; at < end;) {
    const int64_t sample = at / args.size, first = at % args.size;
    const int n = static_cast<int>(std::min({args.size - first, end - at, static_cast<int64_t>(kBlock)}));
    const float w = args.weight[sample];
    const float scale = 2.0f * w * args.grad[sample] / static_cast<float>(args.size);
    const float* out = read(args.out, args.out_type, at, n, in_out);
    const float* target = read(args.target, args.target_type, at, n, in_target);
    float* grad = place(args.grad_out, args.out_type, at, to);
    for (int i = 0; i < n; ++i) grad[i] = scale * (w * out[i] - target[i]);
    write(grad, args.grad_out, args.out_type, at, n);
    at += n;
  }
}

inline void fixed_point(const FixedPoint& args, int64_t begin, int64_t end) {
  float in_x[kBlock], in_v[kBlock], in_y[kBlock], to[kBlock];
  const float h = args.h;
  for (int64_t sample = begin; sample < end; ++sample) {
    double total = 0.0;
    for (int64_t low = 0; low < args.size; low += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, args.size - low));
      const int64_t at = sample * args.size + low;
      const float* x = read(args.x, args.type, at, n, in_x);
      const float* v = read(args.v, args.v_type, at, n, in_v);
      const float* y = read(args.y, args.type, at, n, in_y);
      float* next = place(args.y_next, args.type, at, to);
      for (int i = 0; i < n; ++i) next[i] = x[i] - h * v[i];
      total += sum_of(n, [=](int i) {
        const float change = next[i] - y[i];
        return change * change;
      });
      write(next, args.y_next, args.type, at, n);
    }
    args.residual[sample] = static_cast<float>(std::sqrt(total));
  }
}

}  // namespace pgraft::PGRAFT_ISA
