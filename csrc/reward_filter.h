// Acceptance rules on many short groups. See pgraft_fast/ops/reward_filter.py.
#pragma once

#include <limits>

#include "kernels.h"
#include "philox.h"
#include "rank.h"

namespace pgraft::PGRAFT_ISA {

// Uniform numbers of the candidates, asked for in rising order; drawn many at a time.
class Draws {
 public:
  Draws(const RewardFilter& args, int64_t end)
      : keys_(make_stream(args.seed, 0, 0)), args_(args), end_(end) {}

  double operator()(int64_t position) {
    if (position >= first_ + kBatch) refill(position);
    return (static_cast<double>(words_[position - first_]) + 0.5) * 0x1p-32;
  }

 private:
  static constexpr int kBatch = 8 * kCounters;

  void refill(int64_t first) {
    first_ = first;
    for (int low = 0; low < kBatch; low += kCounters) {
      Counters counters;
      for (int lane = 0; lane < kCounters; ++lane) {
        const int64_t position = std::min(first + low + lane, end_ - 1);
        counters.set(lane, 0, args_.sample_id == nullptr ? position : args_.sample_id[position], args_.step);
      }
      const Words words = counters.words(keys_);
      for (int g = 0; g < kGroups; ++g) store(words_ + low + g * kLanes, words.w[g][0]);
    }
  }

  Keys keys_;
  const RewardFilter& args_;
  int64_t first_ = -kBatch - 1, end_;
  uint32_t words_[kBatch];
};

template <class T>
inline void classical(const Group<T>& group, const RewardFilter& args, int64_t index, Draws& draws, bool* mask) {
  double top = -std::numeric_limits<double>::infinity();
  if (args.r_max != nullptr)
    top = args.r_max[index];
  else
    for (int i = 0; i < group.n; ++i)
      if (group.finite(i)) top = std::max(top, static_cast<double>(group.reward[i]));
  for (int i = 0; i < group.n; ++i)
    mask[i] = group.finite(i) &&
              draws(group.first + i) < std::exp((static_cast<double>(group.reward[i]) - top) / args.temperature);
}

template <class T>
inline void preference(const Group<T>& group, bool* mask) {
  for (int i = 0; i + 1 < group.n; i += 2) {
    const bool one = group.finite(i), two = group.finite(i + 1);
    const T a = group.reward[i], b = group.reward[i + 1];
    const bool wins = one & (!two | (a > b) | ((a == b) & (group.sample_id(i) < group.sample_id(i + 1))));
    mask[i] = wins;
    mask[i + 1] = two & !wins;
  }
  if (group.n % 2 == 1) mask[group.n - 1] = false;
}

// Of accepted candidates with equal keys, the one of the lowest id stays.
template <class T>
inline void drop_copies(const Group<T>& group, bool* mask) {
  thread_local std::vector<int> order;
  order.clear();
  for (int i = 0; i < group.n; ++i)
    if (mask[i]) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](int i, int j) {
    return group.key[i] != group.key[j] ? group.key[i] < group.key[j] : group.sample_id(i) < group.sample_id(j);
  });
  for (size_t i = 1; i < order.size(); ++i)
    if (group.key[order[i]] == group.key[order[i - 1]]) mask[order[i]] = false;
}

template <class T>
inline void at_least(const T* reward, int64_t n, double threshold, bool* mask) {
  // In the rewards' own type, as torch compares a tensor with a number.
  const T least = static_cast<T>(threshold);
  for (int64_t i = 0; i < n; ++i) mask[i] = std::isfinite(reward[i]) & (reward[i] >= least);
}

template <class T>
inline void filter_groups(const RewardFilter& args, int64_t begin, int64_t end) {
  const T* rewards = static_cast<const T*>(args.rewards);
  const int64_t low = args.start_of(begin), high = args.start_of(end);
  if (args.rule == kThreshold || args.rule == kBinary)
    at_least(rewards + low, high - low, args.threshold, args.mask + low);
  Draws draws(args, high);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = args.start_of(index);
    const Group<T> group{rewards + first, args.sample_id == nullptr ? nullptr : args.sample_id + first,
                         args.copies_of == nullptr ? nullptr : args.copies_of + first, first,
                         static_cast<int>(args.start_of(index + 1) - first)};
    bool* mask = args.mask + first;
    if (args.rule == kTopK) {
      best(group, args.k, mask);
    } else if (args.rule == kClassical) {
      classical(group, args, index, draws, mask);
    } else if (args.rule == kPreference) {
      preference(group, mask);
    } else if (args.rule == kBinary && group.key != nullptr) {
      drop_copies(group, mask);
    }
    int64_t count = count_true(mask, group.n);
    if (count == 0 && args.empty == kBest && group.n > 0) {
      best(group, 1, mask);
      count = count_true(mask, group.n);
    }
    args.group_count[index] = count;
    if (args.places_known) write_index(bits_of(mask, group.n), first, index * args.k, args.index, args.capacity);
  }
}

inline void reward_filter(const RewardFilter& args, int64_t begin, int64_t end) {
  if (args.is_double)
    filter_groups<double>(args, begin, end);
  else
    filter_groups<float>(args, begin, end);
}

inline void reward_pack(const RewardFilter& args, int64_t begin, int64_t end, int64_t place) {
  pack(args.mask, args.start_of(begin), args.start_of(end), place, args.index, args.capacity);
}

}  // namespace pgraft::PGRAFT_ISA
