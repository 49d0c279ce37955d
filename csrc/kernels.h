// What the bindings know of the kernels: plain pointers and sizes, one table of functions per instruction set.
#pragma once

#include <cstdint>

namespace pgraft {

enum DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// Columns of a solver's table, one row a step; see pgraft_fast/ops/solver_step.py.
enum Column : int { kP, kQ, kA, kB, kC, kD, kNoise, kKeep, kColumns };

struct SolverStep {
  const void* x;
  const void* out;
  const void* out_null;        // guidance, or null
  const void* previous;        // third state of the row; null: x_0 stands for it, b + c
  const void* noise;           // given noise, or null: drawn where d != 0
  void* x_s;
  void* x_0;                   // or null
  void* x_cut;                 // (slots, batch, size), or null
  float* log_prob;             // (batch), or null
  const int64_t* sample_id;    // (batch), or null: 0, 1, 2 ...
  const float* row;
  DType x_type, out_type, noise_type;
  int64_t batch, size;         // samples, values a sample
  int64_t channels;            // of a channels-last layout, 0 for C order
  int64_t seed;
  float guidance, rescale, clip, ratio, limit;
};

struct PartialNoise {
  const void* x;
  const void* noise;           // or null: drawn
  const double* levels;        // (batch, 4): alpha_s, sigma_s, c, d of target = c x_cut + d e
  const int64_t* sample_id;
  const int64_t* step;         // (batch)
  void* x_s;
  void* target;
  float* weight;               // (batch)
  DType type, noise_type;
  int64_t batch, size, seed;
  double alpha_cut, sigma_cut;
};

struct WeightedError {
  const void* out;
  const void* target;
  const float* weight;         // (batch) square roots of the weights
  const float* grad;           // (batch), backward only
  float* loss;                 // (batch), forward only
  void* grad_out;              // backward only
  DType out_type, target_type;
  int64_t batch, size;
};

enum Rule : int { kTopK, kClassical, kThreshold, kPreference, kBinary };
enum Empty : int { kSkip, kBest };

struct RewardFilter {
  const void* rewards;
  bool is_double;
  const int64_t* offsets;      // (groups + 1), or null: width candidates each
  const int64_t* sample_id;    // or null: 0, 1, 2 ...
  const int64_t* copies_of;    // or null
  const double* r_max;         // (groups), or null: the group's largest
  int64_t groups, width, k;
  Rule rule;
  Empty empty;
  double temperature, threshold;
  int64_t seed, step;          // of the draws of kClassical
  bool* mask;
  int64_t* group_count;
  int64_t* index;              // (capacity)
  int64_t capacity;
  bool places_known;           // every group is hoped to keep k: it writes its indices to index[group k ...]

  int64_t start_of(int64_t group) const { return offsets == nullptr ? group * width : offsets[group]; }
};

struct FixedPoint {
  const void* x;
  const void* v;
  const void* y;
  void* y_next;
  float* residual;             // (batch)
  DType type, v_type;
  int64_t batch, size;
  float h;
};

struct AndersonMix {
  const float* next;           // (history, batch, size): g(y_i)
  const float* residual;       // (history, batch, size): g(y_i) - y_i
  float* y;                    // (batch, size)
  int64_t history, batch, size;
  double ridge;
};

struct GatherPart {
  const char* source;
  char* target;                // or null: no such part
  int64_t bytes;               // a row
};

struct GatherRows {
  const int64_t* index;        // (rows); negative: a row of zeros
  int64_t rows;
  GatherPart part[2];
};

// Ranges [begin, end) of independent work, for the caller to run in parallel.
struct Kernels {
  const char* name;
  void (*philox_normal)(const int64_t* id, const int64_t* step, int64_t seed, int64_t n, DType type, void* out,
                        int64_t begin, int64_t end);
  void (*philox_words)(const int64_t* id, const int64_t* step, int64_t seed, int64_t n, int32_t* out, int64_t begin,
                       int64_t end);
  void (*solver_step_part)(const SolverStep& args, int64_t sample, int64_t begin, int64_t end);
  void (*solver_step_sample)(const SolverStep& args, int64_t sample);
  void (*partial_noise)(const PartialNoise& args, int64_t sample, int64_t begin, int64_t end);
  void (*weighted_error)(const WeightedError& args, int64_t begin, int64_t end);
  void (*weighted_error_grad)(const WeightedError& args, int64_t begin, int64_t end);
  void (*reward_filter)(const RewardFilter& args, int64_t begin, int64_t end);
  // Flat positions of what groups begin ... end - 1 keep, from index[place] on.
  void (*reward_pack)(const RewardFilter& args, int64_t begin, int64_t end, int64_t place);
  void (*gather_rows)(const GatherRows& args, int64_t begin, int64_t end);
  void (*fixed_point)(const FixedPoint& args, int64_t begin, int64_t end);
  void (*anderson_mix)(const AndersonMix& args, int64_t begin, int64_t end);
};

// The best table that this processor runs.
const Kernels& kernels();

}  // namespace pgraft
