// The loops of spanning_tree.hpp for one instruction set, in the compilers' own vector types: the
// width is the only difference, and no operation is contracted, so every variant gives the same
// bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/spanning_tree.hpp"

#if defined(CAUSALPRUNE_TREE_BYTES)

namespace causalprune {

namespace {

inline constexpr int kBytes = CAUSALPRUNE_TREE_BYTES;
inline constexpr std::int64_t kWidth = kBytes / 4;
typedef float Floats __attribute__((vector_size(kBytes)));
typedef std::int32_t Ints __attribute__((vector_size(kBytes)));

inline Floats load(const float* p) {
  Floats value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline void store(float* p, const Floats& value) { std::memcpy(p, &value, sizeof value); }

void add_squares(const float* x, float at, float sign, std::int64_t n, float* to) {
  for (std::int64_t k = 0; k < n; k += kWidth) {
    const Floats difference = load(x + k) - at;
    store(to + k, load(to + k) + difference * difference * sign);
  }
}

inline Ints load(const std::int32_t* p) {
  Ints value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline Ints least_of(const Ints& a, const Ints& b) { return a < b ? a : b; }

// What a step reads, by value: the compiler then knows that writing `nearest` leaves it alone.
struct StepValues {
  const float* row;
  const float* x;
  const float* point;
  std::int64_t padded, dimensions;
  float first;
  std::int32_t side;
};

template <bool kOneDimension>
inline Ints distance_at(const StepValues& s, std::int64_t k) {
  const Floats first = load(s.x + k) - s.first;
  Floats distance = load(s.row + k) + first * first;
  if constexpr (!kOneDimension) {
    for (std::int64_t d = 1; d < s.dimensions; ++d) {
      const Floats difference = load(s.x + d * s.padded + k) - s.point[d];
      distance += difference * difference;
    }
  }
  Ints bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return (bits & ~1) | s.side;
}

template <bool kOneDimension>
inline void update(const StepValues& s, std::int64_t k, std::int32_t* nearest, Ints& best) {
  const Ints bits = least_of(distance_at<kOneDimension>(s, k), load(nearest + k));
  std::memcpy(nearest + k, &bits, sizeof bits);
  best = least_of(bits, best);
}

// The distances are not below zero, so their bits are ordered as they are; the minimum of integers
// takes one cycle, and four of them run side by side.
template <bool kOneDimension>
std::int32_t bring_up_to_date(const TreeStep& step) {
  static_assert(kTreeLanes % (4 * kWidth) == 0);
  const StepValues s{step.row,
                     step.x,
                     step.point,
                     step.padded,
                     step.dimensions,
                     step.point[0],
                     step.second_side ? 1 : 0};
  std::int32_t* nearest = step.nearest;
  Ints a = Ints{} + std::numeric_limits<std::int32_t>::max(), b = a, c = a, d = a;
  for (std::int64_t k = 0; k < s.padded; k += 4 * kWidth) {
    update<kOneDimension>(s, k, nearest, a);
    update<kOneDimension>(s, k + kWidth, nearest, b);
    update<kOneDimension>(s, k + 2 * kWidth, nearest, c);
    update<kOneDimension>(s, k + 3 * kWidth, nearest, d);
  }
  const Ints least = least_of(least_of(a, b), least_of(c, d));
  std::int32_t lanes[kWidth];
  std::memcpy(lanes, &least, sizeof lanes);
  for (std::int64_t half = kWidth / 2; half > 0; half /= 2) {
    for (std::int64_t lane = 0; lane < half; ++lane) {
      lanes[lane] = lanes[lane + half] < lanes[lane] ? lanes[lane + half] : lanes[lane];
    }
  }
  return lanes[0];
}

inline std::int64_t first_place_of(std::int32_t value, const std::int32_t* in) {
  for (std::int64_t k = 0;; k += kTreeLanes) {
    Ints hit{};
    for (std::int64_t lane = 0; lane < kTreeLanes; lane += kWidth)
      hit |= load(in + k + lane) == value;
    std::uint64_t words[kBytes / 8], any = 0;
    std::memcpy(words, &hit, sizeof words);
    for (const std::uint64_t word : words) any |= word;
    if (any == 0) continue;
    while (in[k] != value) ++k;
    return k;
  }
}

template <bool kOneDimension>
TreeNearest step_of(const TreeStep& s) {
  const std::int32_t least = bring_up_to_date<kOneDimension>(s);
  return {first_place_of(least, s.nearest), (least & 1) != 0};
}

TreeNearest step(const TreeStep& s) {
  return s.dimensions == 1 ? step_of<true>(s) : step_of<false>(s);
}

}  // namespace

}  // namespace causalprune

#endif
