// Bringing a tile of path_effects in: transposed, copied, or as lists of what is not zero.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/path_effects.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

struct Signs {
  bool negative = false;  // some value is below zero
  bool finite = true;     // every value is finite
};

// Writes the positions and values of what is not zero among n inputs, keeping their order, and
// tells how many there are. Writes up to 16 entries beyond the last one kept.
CAUSALPRUNE_INLINE std::int32_t compress_nonzero(const float* x, std::int32_t n,
                                                 std::int32_t first_position,
                                                 std::int32_t* position, float* value,
                                                 Signs& signs) {
  std::int32_t kept = 0;
#if defined(CAUSALPRUNE_ISA_AVX512)
  constexpr int kNotFinite = 0x99;  // quiet and signalling NaN, both infinities
  __m512i at =
      _mm512_add_epi32(_mm512_set1_epi32(first_position),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  std::uint32_t below = 0, broken = 0;
  for (std::int32_t k = 0; k < n; k += kLanes) {
    const vec16f v = load_first(x + k, n - k < kLanes ? n - k : kLanes);
    const __mmask16 keep = _mm512_cmp_ps_mask(v.v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    below |= _mm512_cmp_ps_mask(v.v, _mm512_setzero_ps(), _CMP_LT_OQ);
    broken |= _mm512_fpclass_ps_mask(v.v, kNotFinite);
    _mm512_storeu_si512(position + kept, _mm512_maskz_compress_epi32(keep, at));
    _mm512_storeu_ps(value + kept, _mm512_maskz_compress_ps(keep, v.v));
    kept += __builtin_popcount(keep);
    at = _mm512_add_epi32(at, _mm512_set1_epi32(kLanes));
  }
  signs.negative |= below != 0;
  signs.finite &= broken == 0;
#else
  bool below = false;
  float witness = 0.0f;
  for (std::int32_t k = 0; k < n; ++k) {
    position[kept] = first_position + k;
    value[kept] = x[k];
    kept += x[k] != 0.0f;
    below |= x[k] < 0.0f;
    witness += x[k] * 0.0f;
  }
  signs.negative |= below;
  signs.finite &= witness == 0.0f;
#endif
  return kept;
}

// n positions of up to sixteen channels, [lanes, n] to [n, to_step]; missing lanes become zero.
inline bool gather_tile(const float* from, std::int64_t channel_step, int lanes, std::int64_t n,
                        float* to, std::int64_t to_step) {
  vec16f witness = zero();
  for (std::int64_t at = 0; at < n; at += 16) {
    const int count = n - at < 16 ? static_cast<int>(n - at) : 16;
    vec16f block[16];
    CAUSALPRUNE_UNROLL for (int lane = 0; lane < 16; ++lane) {
      block[lane] = zero();
      if (lane < lanes) {
        const float* row = from + lane * channel_step + at;
        // So many runs are more than a hardware prefetcher follows.
        if (at + 64 < n) __builtin_prefetch(row + 64);
        block[lane] = count == 16 ? load(row) : load_first(row, count);
      }
      // Stays zero as long as all values are finite.
      witness = fmadd(block[lane], zero(), witness);
    }
    transpose(block);
    CAUSALPRUNE_UNROLL for (int k = 0; k < 16; ++k) {
      if (k < count) store(to + (at + k) * to_step, block[k]);
    }
  }
  return !any_nonfinite(witness);
}

// Tells whether all of n values, which it copies, were finite.
inline bool copy_row(const float* from, std::int64_t n, float* to) {
  vec16f witness = zero();
  std::int64_t at = 0;
  for (; at + 16 <= n; at += 16) {
    const vec16f value = load(from + at);
    store(to + at, value);
    witness = fmadd(value, zero(), witness);
  }
  if (at < n) {
    const vec16f value = load_first(from + at, static_cast<int>(n - at));
    store_first(to + at, value, static_cast<int>(n - at));
    witness = fmadd(value, zero(), witness);
  }
  return !any_nonfinite(witness);
}

inline bool list_nonzero(const PathListJob& job) {
  bool finite = true;
  for (std::int64_t i = 0; i < job.n_inputs; ++i) {
    const float* x = job.x + i * job.x_plane;
    // Channels are far apart in memory, where no hardware prefetcher follows.
    for (std::int32_t k = 0; k < job.n; k += 16) __builtin_prefetch(x + 8 * job.x_plane + k);
    const std::int64_t at = i * job.list_pitch + job.count[i];
    Signs signs;
    job.count[i] +=
        compress_nonzero(x, job.n, job.first_position, job.position + at, job.value + at, signs);
    job.negative[i / 16] |= signs.negative ? 1 : 0;
    finite &= signs.finite;
  }
  return finite;
}

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
