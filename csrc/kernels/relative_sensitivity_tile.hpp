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

// total[first .. first + K) of the tile's positions. A weight has one sign, so of a position's two
// inverses it needs one: picking it costs less than adding both up.
template <bool take_max, int K>
CAUSALPRUNE_INLINE void add_shares(const SensitivityTile& t, std::int64_t first) {
  const float* from[K];
  signs16 negative[K];
  vec16f found[K];
  CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) {
    from[k] = t.x + t.tap[first + k];
    negative[k] = sign_bits(load(t.weight + (first + k) * kLanes));
    found[k] = zero();
  }
  for (std::int64_t p = 0; p < t.n_positions; ++p) {
    const vec16f plus = load(t.inverse + p * 2 * kLanes);
    const vec16f minus = load(t.inverse + p * 2 * kLanes + kLanes);
    const std::int64_t position = t.position[p];
    CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) {
      const vec16f value = broadcast(from[k][position]);
      const vec16f inverse = select(negative[k], plus, minus);
      found[k] = take_max ? max(found[k], mul(value, inverse)) : fmadd(value, inverse, found[k]);
    }
  }
  CAUSALPRUNE_UNROLL for (int k = 0; k < K; ++k) {
    float* to = t.total + (first + k) * kLanes;
    store(to, take_max ? max(load(to), found[k]) : add(load(to), found[k]));
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
  for (std::int64_t at = 0; at < n_weights * kLanes; at += kLanes) {
    const vec16f share = mul(abs(load(weight + at)), load(total + at));
    store(best + at, max(load(best + at), mul(factor, share)));
  }
}

constexpr SensitivityKernels kSensitivityKernels = {sensitivity_tile, raise_sensitivity};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
