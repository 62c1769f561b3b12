// The inner loops of packed_steps, written once over vec16f and compiled once for each instruction
// set by cpu/packed_<isa>.cpp. Raw pointers only: see common/vec16f.hpp for why.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/packed_convolution_tile.hpp"
#include "kernels/packed_steps.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

inline bool lines_in(const LinesIn& lines) {
  vec16f v[kLanes];
  vec16f witness = zero();
  for (int k = 0; k < kLanes; ++k) {
    v[k] =
        lines.count[k] == kLanes ? load(lines.line[k]) : load_first(lines.line[k], lines.count[k]);
    witness = fmadd(v[k], zero(), witness);  // zero while everything is finite
  }
  transpose(v);
  for (int k = 0; k < lines.n; ++k) store(lines.to + k * lines.step, v[k]);
  return !any_nonfinite(witness);
}

inline void lines_out(const LinesOut& lines) {
  vec16f v[kLanes];
  for (int k = 0; k < kLanes; ++k) v[k] = k < lines.n ? load(lines.from + k * lines.step) : zero();
  transpose(v);
  for (int k = 0; k < kLanes; ++k) {
    store_first(lines.line[k], v[k], lines.count[k]);
  }
}

inline void fill_halo(float* channel, const HaloMove* moves, std::int64_t n,
                      const HaloTable* tables, float outside) {
  for (std::int64_t k = 0; k < n; ++k) {
    const HaloMove& move = moves[k];
    if (move.table < 0) {
      store(channel + move.to, broadcast(outside));
      continue;
    }
    const std::int32_t* table = reinterpret_cast<const std::int32_t*>(tables + move.table);
#if defined(CAUSALPRUNE_ISA_AVX512)
    const __m512i lane = _mm512_loadu_si512(table);
    const __mmask16 inside = _mm512_cmpge_epi32_mask(lane, _mm512_setzero_si512());
    const __m512 from = _mm512_loadu_ps(channel + move.from);
    _mm512_storeu_ps(channel + move.to,
                     _mm512_mask_permutexvar_ps(_mm512_set1_ps(outside), inside, lane, from));
#else
    float moved[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      moved[l] = table[l] < 0 ? outside : channel[move.from + table[l]];
    }
    store(channel + move.to, load(moved));
#endif
  }
}

// The larger of two, or what is not a number.
CAUSALPRUNE_INLINE vec16f max_or_nan(vec16f a, vec16f b) {
#if defined(CAUSALPRUNE_ISA_AVX512)
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), nan, a.v)};
#elif defined(CAUSALPRUNE_ISA_AVX2)
  const auto half = [](__m256 x, __m256 y) {
    return _mm256_blendv_ps(_mm256_max_ps(x, y), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  };
  return {half(a.lo, b.lo), half(a.hi, b.hi)};
#elif defined(CAUSALPRUNE_ISA_NEON)
  return max(a, b);
#else
  vec16f result;
  for (int k = 0; k < kParts; ++k) {
    result.v[k] = a.v[k] != a.v[k] ? a.v[k] : part_max(a.v[k], b.v[k]);
  }
  return result;
#endif
}

inline void pool_row(const PoolRow& r) {
  for (std::int64_t x = 0; x < r.n_positions; ++x) {
    const float* in = r.in + x * r.in_column_step;
    vec16f found = load(in);
    if (r.reciprocal == nullptr) {
      for (std::int64_t ky = 0; ky < r.kernel_height; ++ky) {
        for (std::int64_t kx = 0; kx < r.kernel_width; ++kx) {
          found = max_or_nan(found, load(in + ky * r.tap_row_step + kx * r.tap_column_step));
        }
      }
    } else {
      found = zero();
      for (std::int64_t ky = 0; ky < r.kernel_height; ++ky) {
        for (std::int64_t kx = 0; kx < r.kernel_width; ++kx) {
          found = add(found, load(in + ky * r.tap_row_step + kx * r.tap_column_step));
        }
      }
      found = mul(found, load(r.reciprocal + x * kLanes));
    }
    store(r.out + x * kLanes, found);
  }
}

inline void combine_row(const CombineRow& r) {
  const vec16f scale = broadcast(r.scale), shift = broadcast(r.shift);
  const vec16f least = broadcast(r.least), most = broadcast(r.most);
  for (std::int64_t k = 0; k < r.n_positions * kLanes; k += kLanes) {
    vec16f v = load(r.a + k);
    if (r.b != nullptr) v = add(v, load(r.b + k));
    v = min(most, max(least, fmadd(v, scale, shift)));
    store(r.out + k, r.smooth == PackedActivation::none ? v : smoothed(r.smooth, v));
  }
}

inline void add_row(const float* in, std::int64_t n, float* sums) {
  vec16f sum = load(sums);
  for (std::int64_t k = 0; k < n; ++k) sum = add(sum, load(in + k * kLanes));
  store(sums, sum);
}

inline constexpr PackedStepKernels kPackedSteps{&lines_in, &lines_out,   &fill_halo,
                                                &pool_row, &combine_row, &add_row};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
