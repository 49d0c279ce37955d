// Operators of pgraft_fast_cpp on torch's stable ABI: one library serves every torch from 2.10 on and any Python.
//
// Shapes, dtypes and layouts are checked by the callers in pgraft_fast/ops; outputs come in as arguments, so nothing is
// allocated here.
#include <torch/csrc/stable/library.h>

#include <numeric>
#include <vector>

#include "tensors.h"

namespace pgraft {
namespace {

void philox_normal(const Tensor& id, const Tensor& step, int64_t seed, int64_t n, const Tensor& out) {
  ask_for_huge_pages(out, out.numel() * (dtype(out) == kFloat32 ? 4 : 2));
  split_values(out.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernels().philox_normal(pointer<int64_t>(id), pointer<int64_t>(step), seed, n, dtype(out), pointer<void>(out),
                            begin, end);
  });
}

void philox_words(const Tensor& id, const Tensor& step, int64_t seed, int64_t n, const Tensor& out) {
  split_values(out.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernels().philox_words(pointer<int64_t>(id), pointer<int64_t>(step), seed, n, pointer<int32_t>(out), begin, end);
  });
}

void run(const SolverStep& args) {
  if (args.size == 0) {
    if (args.log_prob != nullptr) std::fill_n(args.log_prob, args.batch, 0.0f);
    return;
  }
  if (args.rescale != 0.0f || args.ratio > 0.0f || args.log_prob != nullptr) {
    split(args.batch, samples_a_thread(args.size), [&](int64_t begin, int64_t end) {
      for (int64_t sample = begin; sample < end; ++sample) kernels().solver_step_sample(args, sample);
    });
    return;
  }
  split_samples(args.batch, args.size, [&](int64_t sample, int64_t begin, int64_t end) {
    kernels().solver_step_part(args, sample, begin, end);
  });
}

void solver_step(const Tensor& x, const Tensor& out, const Optional& out_null, const Optional& previous,
                 const Optional& noise, const Tensor& table, const Tensor& step, const Optional& sample_id,
                 int64_t seed, double guidance, double rescale, double clip, double ratio, double limit,
                 int64_t batch, int64_t channels, const Tensor& x_s, const Optional& x_0, const Optional& x_cut,
                 const Optional& log_prob) {
  const int64_t row = *pointer<int64_t>(step), size = batch == 0 ? 0 : x.numel() / batch;
  run({pointer<void>(x), pointer<void>(out), pointer<void>(out_null), pointer<void>(previous), pointer<void>(noise),
       pointer<void>(x_s), pointer<void>(x_0), pointer<void>(x_cut), pointer<float>(log_prob),
       pointer<int64_t>(sample_id), pointer<float>(table) + row * kColumns, dtype(x), dtype(out), dtype(noise), batch,
       size, channels, seed, static_cast<float>(guidance), static_cast<float>(rescale), static_cast<float>(clip),
       static_cast<float>(ratio), static_cast<float>(limit)});
}

void partial_noise(const Tensor& x, const Optional& noise, const Tensor& levels, const Optional& sample_id,
                   const Optional& step, int64_t seed, double alpha_cut, double sigma_cut, const Tensor& x_s,
                   const Tensor& target, const Tensor& weight) {
  const int64_t batch = weight.numel();
  const PartialNoise args{
      pointer<void>(x), pointer<void>(noise), pointer<double>(levels), pointer<int64_t>(sample_id),
      pointer<int64_t>(step), pointer<void>(x_s), pointer<void>(target), pointer<float>(weight), dtype(x), dtype(noise),
      batch, batch == 0 ? 0 : x.numel() / batch, seed, alpha_cut, sigma_cut};
  split_samples(batch, args.size, [&](int64_t sample, int64_t begin, int64_t end) {
    kernels().partial_noise(args, sample, begin, end);
  });
}

WeightedError weighted(const Tensor& out, const Tensor& target, const Tensor& weight) {
  WeightedError args{};
  args.out = pointer<void>(out), args.target = pointer<void>(target), args.weight = pointer<float>(weight);
  args.out_type = dtype(out), args.target_type = dtype(target);
  args.batch = weight.numel(), args.size = args.batch == 0 ? 0 : out.numel() / args.batch;
  return args;
}

void weighted_mse(const Tensor& out, const Tensor& target, const Tensor& weight, const Tensor& loss) {
  WeightedError args = weighted(out, target, weight);
  args.loss = pointer<float>(loss);
  split(args.batch, samples_a_thread(args.size),
        [&](int64_t begin, int64_t end) { kernels().weighted_error(args, begin, end); });
}

void weighted_mse_grad(const Tensor& out, const Tensor& target, const Tensor& weight, const Tensor& grad,
                       const Tensor& grad_out) {
  WeightedError args = weighted(out, target, weight);
  args.grad = pointer<float>(grad), args.grad_out = pointer<void>(grad_out);
  split_values(args.batch * args.size, kGrain,
               [&](int64_t begin, int64_t end) { kernels().weighted_error_grad(args, begin, end); });
}

// Numbers of accepted candidates before each piece of `grain` groups; the last is the number in all.
std::vector<int64_t> starts(const int64_t* group_count, int64_t groups, int64_t grain) {
  std::vector<int64_t> start{0};
  for (int64_t low = 0; low < groups; low += grain) {
    const int64_t* begin = group_count + low;
    start.push_back(std::accumulate(begin, begin + std::min(grain, groups - low), start.back()));
  }
  return start;
}

void reward_filter(const Tensor& rewards, const Optional& offsets, const Optional& sample_id, const Optional& copies_of,
                   const Optional& r_max, int64_t groups, int64_t width, int64_t rule, int64_t k, double temperature,
                   double threshold, int64_t best_if_empty, int64_t seed, int64_t step, const Tensor& mask,
                   const Tensor& group_count, const Tensor& index, const Tensor& count) {
  const RewardFilter args{
      pointer<void>(rewards), rewards.scalar_type() == ScalarType::Double, pointer<int64_t>(offsets),
      pointer<int64_t>(sample_id), pointer<int64_t>(copies_of), pointer<double>(r_max), groups, width, k,
      static_cast<Rule>(rule), best_if_empty ? kBest : kSkip, temperature, threshold, seed, step, pointer<bool>(mask),
      pointer<int64_t>(group_count), pointer<int64_t>(index), index.numel(), rule == kTopK && width <= 64};
  const int64_t mean = groups == 0 ? 1 : std::max<int64_t>(1, rewards.numel() / groups);
  const int64_t grain = std::max<int64_t>(1, kGrain / mean);
  split(groups, grain, [&](int64_t begin, int64_t end) { kernels().reward_filter(args, begin, end); });
  const std::vector<int64_t> start = starts(args.group_count, groups, grain);
  const int64_t total = start.back();
  // A group that kept fewer than k moves all that follow.
  if (!args.places_known || total != groups * k)
    split(static_cast<int64_t>(start.size()) - 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece)
        kernels().reward_pack(args, piece * grain, std::min((piece + 1) * grain, groups), start[piece]);
    });
  std::fill(args.index + std::min(total, args.capacity), args.index + args.capacity, -1);
  *pointer<int64_t>(count) = total;
}

void gather_rows(const Tensor& index, const Tensor& x, const Optional& other, const Tensor& rows,
                 const Optional& other_rows) {
  GatherRows args{pointer<int64_t>(index), index.numel(), {{pointer<char>(x), pointer<char>(rows), x.size(1)}, {}}};
  if (other.has_value()) args.part[1] = {pointer<char>(other), pointer<char>(other_rows), other->size(1)};
  const int64_t row_bytes = args.part[0].bytes + args.part[1].bytes;
  ask_for_huge_pages(rows, args.rows * args.part[0].bytes);
  split(args.rows, std::max<int64_t>(1, 4 * kGrain / std::max<int64_t>(1, row_bytes)),
        [&](int64_t begin, int64_t end) { kernels().gather_rows(args, begin, end); });
}

void fixed_point_update(const Tensor& x, const Tensor& v, const Tensor& y, double h, const Tensor& y_next,
                        const Tensor& residual) {
  const int64_t batch = residual.numel(), size = batch == 0 ? 0 : x.numel() / batch;
  const FixedPoint args{pointer<void>(x), pointer<void>(v), pointer<void>(y), pointer<void>(y_next),
                        pointer<float>(residual), dtype(x), dtype(v), batch, size, static_cast<float>(h)};
  split(batch, samples_a_thread(size),
        [&](int64_t begin, int64_t end) { kernels().fixed_point(args, begin, end); });
}

void anderson_mix(const Tensor& next, const Tensor& residual, double ridge, const Tensor& y) {
  const int64_t history = next.size(0), batch = next.size(1), n = y.numel();
  const AndersonMix args{pointer<float>(next), pointer<float>(residual), pointer<float>(y), history, batch,
                         batch == 0 ? 0 : n / batch, ridge};
  split(batch, samples_a_thread(args.size * history),
        [&](int64_t begin, int64_t end) { kernels().anderson_mix(args, begin, end); });
}

int64_t instruction_set() {
  const char* name = kernels().name;
  return name[0] == 'b' ? 0 : (name[3] == '2' ? 2 : 512);
}

}  // namespace

// For callers that keep the argument block themselves, pgraft_fast/ops/pointers.py: a dispatched call of twenty
// arguments costs more than a small step.
#define PGRAFT_EXPORT extern "C" __attribute__((visibility("default")))

// A step of the block with the row of its table that `step` counts.
PGRAFT_EXPORT void pgraft_solver_step(const SolverStep* block, const int64_t* step) {
  SolverStep args = *block;
  args.row += *step * kColumns;
  run(args);
}

// A step of the block with another row of its table and other outputs: out, or out_null and `half` bytes behind it out.
PGRAFT_EXPORT void pgraft_solver_step_at(const SolverStep* block, int64_t row, const char* out, int64_t half) {
  SolverStep args = *block;
  args.row += row * kColumns;
  args.out = out + half;
  args.out_null = half == 0 ? nullptr : out;
  run(args);
}

PGRAFT_EXPORT int64_t pgraft_solver_step_bytes() { return sizeof(SolverStep); }

}  // namespace pgraft

STABLE_TORCH_LIBRARY(pgraft_fast_cpp, m) {
  m.def("philox_normal(Tensor id, Tensor step, int seed, int n, Tensor(a!) out) -> ()");
  m.def("philox_words(Tensor id, Tensor step, int seed, int n, Tensor(a!) out) -> ()");
  m.def(
      "solver_step(Tensor x, Tensor out, Tensor? out_null, Tensor? previous, Tensor? noise, Tensor table, Tensor step, "
      "Tensor? sample_id, int seed, float guidance, float rescale, float clip, float ratio, float limit, int batch, "
      "int channels, Tensor(a!) x_s, Tensor(b!)? x_0, Tensor(c!)? x_cut, Tensor(d!)? log_prob) -> ()");
  m.def(
      "partial_noise(Tensor x, Tensor? noise, Tensor levels, Tensor? sample_id, Tensor? step, int seed, "
      "float alpha_cut, float sigma_cut, Tensor(a!) x_s, Tensor(b!) target, Tensor(c!) weight) -> ()");
  m.def("weighted_mse(Tensor out, Tensor target, Tensor weight, Tensor(a!) loss) -> ()");
  m.def("weighted_mse_grad(Tensor out, Tensor target, Tensor weight, Tensor grad, Tensor(a!) grad_out) -> ()");
  m.def(
      "reward_filter(Tensor rewards, Tensor? offsets, Tensor? sample_id, Tensor? copies_of, Tensor? r_max, int groups, "
      "int width, int rule, int k, float temperature, float threshold, int best_if_empty, int seed, int step, "
      "Tensor(a!) mask, Tensor(b!) group_count, Tensor(c!) index, Tensor(d!) count) -> ()");
  m.def("gather_rows(Tensor index, Tensor x, Tensor? other, Tensor(a!) rows, Tensor(b!)? other_rows) -> ()");
  m.def("fixed_point_update(Tensor x, Tensor v, Tensor y, float h, Tensor(a!) y_next, Tensor(b!) residual) -> ()");
  m.def("anderson_mix(Tensor next, Tensor residual, float ridge, Tensor(a!) y) -> ()");
  m.def("instruction_set() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(pgraft_fast_cpp, CompositeExplicitAutograd, m) {
  m.impl("philox_normal", TORCH_BOX(&pgraft::philox_normal));
  m.impl("philox_words", TORCH_BOX(&pgraft::philox_words));
  m.impl("solver_step", TORCH_BOX(&pgraft::solver_step));
  m.impl("partial_noise", TORCH_BOX(&pgraft::partial_noise));
  m.impl("weighted_mse", TORCH_BOX(&pgraft::weighted_mse));
  m.impl("weighted_mse_grad", TORCH_BOX(&pgraft::weighted_mse_grad));
  m.impl("reward_filter", TORCH_BOX(&pgraft::reward_filter));
  m.impl("gather_rows", TORCH_BOX(&pgraft::gather_rows));
  m.impl("fixed_point_update", TORCH_BOX(&pgraft::fixed_point_update));
  m.impl("anderson_mix", TORCH_BOX(&pgraft::anderson_mix));
  m.impl("instruction_set", TORCH_BOX(&pgraft::instruction_set));
}
