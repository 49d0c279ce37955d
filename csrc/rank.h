// The k best of a group. Total order: reward descending, sample id ascending; never a reward that is not finite.
#pragma once

#include <climits>
#include <type_traits>
#include <vector>

#include "bits.h"

namespace pgraft::PGRAFT_ISA {

constexpr int kCounted = 64;  // groups up to this size are ranked by counting, larger ones by sorting

template <class T>
struct Group {
  const T* reward;
  const int64_t* id;   // or null: flat position
  const int64_t* key;  // of equal candidates, or null
  int64_t first;       // flat position of the first candidate
  int n;

  int64_t sample_id(int i) const { return id == nullptr ? first + i : id[i]; }
  bool finite(int i) const { return std::isfinite(reward[i]); }
  bool better(int i, int j) const {
    if (reward[i] != reward[j]) return reward[i] > reward[j];
    return sample_id(i) < sample_id(j);
  }
  bool ids_rise() const {
    bool fall = false;
    if (id != nullptr)
      for (int i = 1; i < n; ++i) fall |= id[i] <= id[i - 1];
    return !fall;
  }
};

// Integers in the order of the floats, -0 equal to +0; INT_MIN for what is not finite.
inline VecI order_keys(VecF reward) {
  const VecI bits = as<VecI>(reward);
  const VecI key = bits < 0 ? INT_MIN - bits : bits;
  return (bits & 0x7F800000) == 0x7F800000 ? VecI{} + INT_MIN : key;
}

// place + 1 where a > b.
inline VecI add_if_greater(VecI place, VecI a, VecI b) {
#if defined(__AVX512F__)
  const __m512i now = as<__m512i>(place), one = _mm512_set1_epi32(1);
  return as<VecI>(_mm512_mask_add_epi32(now, _mm512_cmpgt_epi32_mask(as<__m512i>(a), as<__m512i>(b)), now, one));
#else
  return place - (a > b);
#endif
}

// -1 in the lanes after lane j.
struct After {
  VecI lanes[kLanes];

  After() {
    for (int j = 0; j < kLanes; ++j)
      for (int l = 0; l < kLanes; ++l) lanes[j][l] = l > j ? -1 : 0;
  }
};

// A candidate's place is the number of those that beat it. Ids rise with the position, so an earlier candidate also
// wins a tie: its key need only be above mine - 1.
inline uint64_t best_by_counting(const float* reward, int n, int64_t k) {
  static const After after;
  alignas(PGRAFT_BYTES) int32_t key[kCounted];
  const int places = static_cast<int>(std::min<int64_t>(k, kCounted));
  for (int low = 0; low < n; low += kLanes) {
    float buffer[kLanes];
    const float* from = reward + low;
    if (n - low < kLanes) {
      for (int l = 0; l < kLanes; ++l) buffer[l] = low + l < n ? from[l] : NAN;
      from = buffer;
    }
    store(key + low, order_keys(load<VecF>(from)));
  }
  uint64_t bits = 0;
  for (int low = 0; low < n; low += kLanes) {
    const VecI mine = load<VecI>(key + low), below = mine - 1;
    VecI place{};
    int j = 0;
    for (; j < low; ++j) place = add_if_greater(place, VecI{} + key[j], below);
    for (; j < std::min(low + kLanes, n); ++j)
      place = add_if_greater(place, VecI{} + key[j], mine + after.lanes[j - low]);
    for (; j < n; ++j) place = add_if_greater(place, VecI{} + key[j], mine);
    bits |= lane_bits((place < places) & (mine != INT_MIN)) << low;
  }
  return bits;
}

template <class T>
inline void best_by_sorting(const Group<T>& group, int64_t k, bool* mask) {
  thread_local std::vector<int> order;
  order.clear();
  for (int i = 0; i < group.n; ++i) {
    mask[i] = false;
    if (group.finite(i)) order.push_back(i);
  }
  const auto better = [&](int i, int j) { return group.better(i, j); };
  if (static_cast<int64_t>(order.size()) > k) {
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), better);
    order.resize(k);
  }
  for (int i : order) mask[i] = true;
}

template <class T>
inline void best(const Group<T>& group, int64_t k, bool* mask) {
  if constexpr (std::is_same_v<T, float>) {
    if (group.n <= kCounted && group.ids_rise())
      return write_bits(best_by_counting(group.reward, group.n, k), mask, group.n);
  }
  best_by_sorting(group, k, mask);
}

}  // namespace pgraft::PGRAFT_ISA
