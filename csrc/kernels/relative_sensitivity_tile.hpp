// The inner loops of relative_sensitivity, written once over vec16f and compiled once for each
// instruction set by cpu/relative_sensitivity_<isa>.cpp. Raw pointers only: see common/vec16f.hpp
// for why.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/relative_sensitivity.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// Two accumulators, one for each sign, for every position or weight of a register tile.
inline constexpr int kTile = kColumns >= 8 ? 8 : kColumns >= 2 ? kColumns / 2 : 1;

struct BySign {
  vec16f plus, minus;
};

CAUSALPRUNE_INLINE BySign split(vec16f weight) {
  const vec16f plus = max(weight, zero());
  return {plus, sub(plus, weight)};
}

// inverse[first .. first + K) = the denominators of K positions.
template <int K>
CAUSALPRUNE_INLINE void add_denominators(const SensitivityTile& t, std::int64_t first) {
  const float* from[K];
  CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) from[k] = t.x + t.position[first + k];
  float* to = t.inverse + first * 2 * kLanes;
  for (std::int64_t begin = 0; begin < t.n_weights; begin += kWeightChunk) {
    const std::int64_t end =
        begin + kWeightChunk < t.n_weights ? begin + kWeightChunk : t.n_weights;
    BySign sum[K];
    CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) sum[k] = {zero(), zero()};
    for (std::int64_t f = begin; f < end; ++f) {
      const BySign weight = split(load(t.weight + f * kLanes));
      const std::int64_t tap = t.tap[f];
      CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) {
        const vec16f value = broadcast(from[k][tap]);
        sum[k].plus = fmadd(value, weight.plus, sum[k].plus);
        sum[k].minus = fmadd(value, weight.minus, sum[k].minus);
      }
    }
    CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) {
      float* plus = to + k * 2 * kLanes;
      float* minus = plus + kLanes;
      store(plus, begin == 0 ? sum[k].plus : add(load(plus), sum[k].plus));
      store(minus, begin == 0 ? sum[k].minus : add(load(minus), sum[k].minus));
    }
  }
}

// From denominators to their inverses, in place; tells whether all of them were finite.
CAUSALPRUNE_INLINE bool invert(std::int64_t n, float* values) {
  constexpr float kInfinity = __builtin_inff();
  int broken = 0;
  for (std::int64_t k = 0; k < n; ++k) {
    const float sum = values[k];
    broken |= !(sum < kInfinity);
    // Dividing by infinity, so that no lane is skipped and the loop is vectorised.
    values[k] = 1.0f / (sum > kSmallestDenominator ? sum : kInfinity);
  }
  return broken == 0;
}

// total[first .. first + K) of the tile's positions.
template <bool take_max, int K>
CAUSALPRUNE_INLINE void add_shares(const SensitivityTile& t, std::int64_t first) {
  const float* from[K];
  CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) from[k] = t.x + t.tap[first + k];
  BySign found[K];
  CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) found[k] = {zero(), zero()};
  for (std::int64_t p = 0; p < t.n_positions; ++p) {
    const vec16f plus = load(t.inverse + p * 2 * kLanes);
    const vec16f minus = load(t.inverse + p * 2 * kLanes + kLanes);
    const std::int64_t position = t.position[p];
    CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) {
      const vec16f value = broadcast(from[k][position]);
      if constexpr (take_max) {
        found[k].plus = max(found[k].plus, mul(value, plus));
        found[k].minus = max(found[k].minus, mul(value, minus));
      } else {
        found[k].plus = fmadd(value, plus, found[k].plus);
        found[k].minus = fmadd(value, minus, found[k].minus);
      }
    }
  }
  CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) {
    float* plus = t.total + (first + k) * 2 * kLanes;
    float* minus = plus + kLanes;
    store(plus, take_max ? max(load(plus), found[k].plus) : add(load(plus), found[k].plus));
    store(minus, take_max ? max(load(minus), found[k].minus) : add(load(minus), found[k].minus));
  }
}

template <bool take_max>
void add_all_shares(const SensitivityTile& t) {
  std::int64_t f = 0;
  for (; f + kTile <= t.n_weights; f += kTile) add_shares<take_max, kTile>(t, f);
  for (; f < t.n_weights; ++f) add_shares<take_max, 1>(t, f);
}

inline bool sensitivity_tile(Aggregate aggregate, const SensitivityTile& t) {
  std::int64_t p = 0;
  for (; p + kTile <= t.n_positions; p += kTile) add_denominators<kTile>(t, p);
  for (; p < t.n_positions; ++p) add_denominators<1>(t, p);
  const bool finite = invert(t.n_positions * 2 * kLanes, t.inverse);
  aggregate == Aggregate::max ? add_all_shares<true>(t) : add_all_shares<false>(t);
  return finite;
}

inline void raise_sensitivity(std::int64_t n_weights, const float* weight, const float* total,
                              float scale, float* best) {
  const vec16f factor = broadcast(scale);
  for (std::int64_t f = 0; f < n_weights; ++f) {
    const BySign part = split(load(weight + f * kLanes));
    const vec16f plus = mul(part.plus, load(total + f * 2 * kLanes));
    const vec16f minus = mul(part.minus, load(total + f * 2 * kLanes + kLanes));
    float* to = best + f * kLanes;
    store(to, max(load(to), mul(factor, max(plus, minus))));
  }
}

constexpr SensitivityKernels kSensitivityKernels = {sensitivity_tile, raise_sensitivity};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
