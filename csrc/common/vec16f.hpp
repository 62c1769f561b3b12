// vec16f: sixteen float lanes with one memory layout on every instruction set.
//
// Which registers hold the lanes is the including translation unit's choice (one zmm, two ymm, four
// NEON registers, or a plain array), made by CAUSALPRUNE_ISA_<NAME>. Everything lives in a
// namespace of that name and is always inlined, so that no function compiled for AVX-512 can be
// picked by the linker for a caller that runs on a smaller machine. For the same reason translation
// units that include this header must not instantiate anything from the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(CAUSALPRUNE_ISA_AVX512) || defined(CAUSALPRUNE_ISA_AVX2)
#include <immintrin.h>
#elif defined(CAUSALPRUNE_ISA_NEON)
#include <arm_neon.h>
#endif

#define CAUSALPRUNE_INLINE inline __attribute__((always_inline))
// Register tiles are arrays: they stay in registers only if every loop over them is unrolled.
#if defined(__clang__)
#define CAUSALPRUNE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CAUSALPRUNE_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(CAUSALPRUNE_ISA_AVX512)
#define CAUSALPRUNE_ISA_NAMESPACE isa_avx512
#elif defined(CAUSALPRUNE_ISA_AVX2)
#define CAUSALPRUNE_ISA_NAMESPACE isa_avx2
#elif defined(CAUSALPRUNE_ISA_NEON)
#define CAUSALPRUNE_ISA_NAMESPACE isa_neon
#else
#define CAUSALPRUNE_ISA_NAMESPACE isa_scalar
#endif

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

inline constexpr int kLanes = 16;

#if defined(CAUSALPRUNE_ISA_AVX512)

// What a register tile holds, as much as the register file feeds without spilling: columns, output
// blocks of a pointwise tile and of a 3x3 tile, inputs of a dense pointwise tile, sums of an
// update.
inline constexpr int kColumns = 8;
inline constexpr int kPointwiseBlocks = 2;
inline constexpr int kTapBlocks = 2;
inline constexpr int kDenseInputs = 8;
inline constexpr int kUpdateSums = 16;

struct vec16f {
  __m512 v;
};

CAUSALPRUNE_INLINE vec16f load(const float* p) { return {_mm512_loadu_ps(p)}; }
CAUSALPRUNE_INLINE void store(float* p, vec16f a) { _mm512_storeu_ps(p, a.v); }
CAUSALPRUNE_INLINE vec16f broadcast(float a) { return {_mm512_set1_ps(a)}; }
CAUSALPRUNE_INLINE vec16f add(vec16f a, vec16f b) { return {_mm512_add_ps(a.v, b.v)}; }
CAUSALPRUNE_INLINE vec16f sub(vec16f a, vec16f b) { return {_mm512_sub_ps(a.v, b.v)}; }
CAUSALPRUNE_INLINE vec16f mul(vec16f a, vec16f b) { return {_mm512_mul_ps(a.v, b.v)}; }
CAUSALPRUNE_INLINE vec16f div(vec16f a, vec16f b) { return {_mm512_div_ps(a.v, b.v)}; }
CAUSALPRUNE_INLINE vec16f max(vec16f a, vec16f b) { return {_mm512_max_ps(a.v, b.v)}; }
CAUSALPRUNE_INLINE vec16f min(vec16f a, vec16f b) { return {_mm512_min_ps(a.v, b.v)}; }
CAUSALPRUNE_INLINE vec16f abs(vec16f a) { return {_mm512_abs_ps(a.v)}; }
CAUSALPRUNE_INLINE vec16f fmadd(vec16f a, vec16f b, vec16f c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
CAUSALPRUNE_INLINE vec16f fnmadd(vec16f a, vec16f b, vec16f c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
CAUSALPRUNE_INLINE vec16f round_nearest(vec16f a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127].
CAUSALPRUNE_INLINE vec16f pow2(vec16f n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// Which lanes have their sign bit set, and lane by lane a where it is not and b where it is.
struct signs16 {
  __mmask16 v;
};
CAUSALPRUNE_INLINE signs16 sign_bits(vec16f a) {
  return {_mm512_movepi32_mask(_mm512_castps_si512(a.v))};
}
CAUSALPRUNE_INLINE vec16f select(signs16 negative, vec16f a, vec16f b) {
  return {_mm512_mask_blend_ps(negative.v, a.v, b.v)};
}
// The first n lanes, zero in the others; reads no further.
CAUSALPRUNE_INLINE vec16f load_first(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p)};
}
// Writes the first n lanes and nothing further.
CAUSALPRUNE_INLINE void store_first(float* p, vec16f a, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), a.v);
}
// Lanes become rows: 2x2 blocks, then 4x4, then the four 128-bit quarters twice.
CAUSALPRUNE_INLINE void transpose(vec16f (&a)[16]) {
  __m512 b[16];
  CAUSALPRUNE_UNROLL for (int k = 0; k < 16; k += 4) {
    const __m512 lo0 = _mm512_unpacklo_ps(a[k].v, a[k + 1].v);
    const __m512 hi0 = _mm512_unpackhi_ps(a[k].v, a[k + 1].v);
    const __m512 lo1 = _mm512_unpacklo_ps(a[k + 2].v, a[k + 3].v);
    const __m512 hi1 = _mm512_unpackhi_ps(a[k + 2].v, a[k + 3].v);
    b[k] = _mm512_shuffle_ps(lo0, lo1, 0x44);
    b[k + 1] = _mm512_shuffle_ps(lo0, lo1, 0xee);
    b[k + 2] = _mm512_shuffle_ps(hi0, hi1, 0x44);
    b[k + 3] = _mm512_shuffle_ps(hi0, hi1, 0xee);
  }
  CAUSALPRUNE_UNROLL for (int k = 0; k < 4; ++k) {
    const __m512 even0 = _mm512_shuffle_f32x4(b[k], b[k + 4], 0x88);
    const __m512 odd0 = _mm512_shuffle_f32x4(b[k], b[k + 4], 0xdd);
    const __m512 even1 = _mm512_shuffle_f32x4(b[k + 8], b[k + 12], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(b[k + 8], b[k + 12], 0xdd);
    a[k].v = _mm512_shuffle_f32x4(even0, even1, 0x88);
    a[k + 4].v = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
    a[k + 8].v = _mm512_shuffle_f32x4(even0, even1, 0xdd);
    a[k + 12].v = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
  }
}

#elif defined(CAUSALPRUNE_ISA_AVX2)

inline constexpr int kColumns = 4;
inline constexpr int kPointwiseBlocks = 1;
inline constexpr int kTapBlocks = 1;
inline constexpr int kDenseInputs = 2;
inline constexpr int kUpdateSums = 4;

struct vec16f {
  __m256 lo, hi;
};

CAUSALPRUNE_INLINE vec16f load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
CAUSALPRUNE_INLINE void store(float* p, vec16f a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
CAUSALPRUNE_INLINE vec16f broadcast(float a) {
  const __m256 v = _mm256_set1_ps(a);
  return {v, v};
}
CAUSALPRUNE_INLINE vec16f add(vec16f a, vec16f b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
CAUSALPRUNE_INLINE vec16f sub(vec16f a, vec16f b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
CAUSALPRUNE_INLINE vec16f mul(vec16f a, vec16f b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
CAUSALPRUNE_INLINE vec16f div(vec16f a, vec16f b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
CAUSALPRUNE_INLINE vec16f max(vec16f a, vec16f b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
CAUSALPRUNE_INLINE vec16f min(vec16f a, vec16f b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
CAUSALPRUNE_INLINE vec16f abs(vec16f a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
CAUSALPRUNE_INLINE vec16f fmadd(vec16f a, vec16f b, vec16f c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
CAUSALPRUNE_INLINE vec16f fnmadd(vec16f a, vec16f b, vec16f c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
CAUSALPRUNE_INLINE vec16f round_nearest(vec16f a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
CAUSALPRUNE_INLINE vec16f pow2(vec16f n) {
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i lo = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.lo), bias), 23);
  const __m256i hi = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.hi), bias), 23);
  return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}

using signs16 = vec16f;
CAUSALPRUNE_INLINE signs16 sign_bits(vec16f a) { return a; }
CAUSALPRUNE_INLINE vec16f select(signs16 negative, vec16f a, vec16f b) {
  return {_mm256_blendv_ps(a.lo, b.lo, negative.lo), _mm256_blendv_ps(a.hi, b.hi, negative.hi)};
}

#else

#if defined(CAUSALPRUNE_ISA_NEON)
inline constexpr int kColumns = 4;
inline constexpr int kPointwiseBlocks = 1;
inline constexpr int kTapBlocks = 1;
inline constexpr int kDenseInputs = 2;
inline constexpr int kUpdateSums = 4;
inline constexpr int kParts = 4;
using part = float32x4_t;
CAUSALPRUNE_INLINE part part_load(const float* p) { return vld1q_f32(p); }
CAUSALPRUNE_INLINE void part_store(float* p, part a) { vst1q_f32(p, a); }
CAUSALPRUNE_INLINE part part_broadcast(float a) { return vdupq_n_f32(a); }
CAUSALPRUNE_INLINE part part_add(part a, part b) { return vaddq_f32(a, b); }
CAUSALPRUNE_INLINE part part_sub(part a, part b) { return vsubq_f32(a, b); }
CAUSALPRUNE_INLINE part part_mul(part a, part b) { return vmulq_f32(a, b); }
CAUSALPRUNE_INLINE part part_div(part a, part b) { return vdivq_f32(a, b); }
CAUSALPRUNE_INLINE part part_max(part a, part b) { return vmaxq_f32(a, b); }
CAUSALPRUNE_INLINE part part_min(part a, part b) { return vminq_f32(a, b); }
CAUSALPRUNE_INLINE part part_abs(part a) { return vabsq_f32(a); }
CAUSALPRUNE_INLINE part part_fmadd(part a, part b, part c) { return vfmaq_f32(c, a, b); }
CAUSALPRUNE_INLINE part part_fnmadd(part a, part b, part c) { return vfmsq_f32(c, a, b); }
CAUSALPRUNE_INLINE part part_round(part a) { return vrndnq_f32(a); }
CAUSALPRUNE_INLINE part part_select(part sign, part a, part b) {
  const uint32x4_t negative = vcltzq_s32(vreinterpretq_s32_f32(sign));
  return vbslq_f32(negative, b, a);
}
CAUSALPRUNE_INLINE part part_pow2(part n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
#else
inline constexpr int kColumns = 1;
inline constexpr int kPointwiseBlocks = 1;
inline constexpr int kTapBlocks = 1;
inline constexpr int kDenseInputs = 1;
inline constexpr int kUpdateSums = 1;
inline constexpr int kParts = 16;
using part = float;
CAUSALPRUNE_INLINE part part_load(const float* p) { return *p; }
CAUSALPRUNE_INLINE void part_store(float* p, part a) { *p = a; }
CAUSALPRUNE_INLINE part part_broadcast(float a) { return a; }
CAUSALPRUNE_INLINE part part_add(part a, part b) { return a + b; }
CAUSALPRUNE_INLINE part part_sub(part a, part b) { return a - b; }
CAUSALPRUNE_INLINE part part_mul(part a, part b) { return a * b; }
CAUSALPRUNE_INLINE part part_div(part a, part b) { return a / b; }
CAUSALPRUNE_INLINE part part_max(part a, part b) { return a > b ? a : b; }
CAUSALPRUNE_INLINE part part_min(part a, part b) { return a < b ? a : b; }
CAUSALPRUNE_INLINE part part_abs(part a) { return a < 0.0f ? -a : a; }
CAUSALPRUNE_INLINE part part_fmadd(part a, part b, part c) { return a * b + c; }
CAUSALPRUNE_INLINE part part_fnmadd(part a, part b, part c) { return c - a * b; }
CAUSALPRUNE_INLINE part part_select(part sign, part a, part b) {
  return __builtin_signbitf(sign) ? b : a;
}
CAUSALPRUNE_INLINE part part_round(part a) {
  // Adding and taking away 1.5 * 2^23 rounds to nearest in the default rounding mode.
  const float shifted = a + 12582912.0f;
  return shifted - 12582912.0f;
}
CAUSALPRUNE_INLINE part part_pow2(part n) {
  const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
#endif

struct vec16f {
  part v[kParts];
};
inline constexpr int kPartLanes = kLanes / kParts;

#define CAUSALPRUNE_EACH_PART(expression)                    \
  vec16f result;                                             \
  for (int k = 0; k < kParts; ++k) result.v[k] = expression; \
  return result

CAUSALPRUNE_INLINE vec16f load(const float* p) {
  CAUSALPRUNE_EACH_PART(part_load(p + k * kPartLanes));
}
CAUSALPRUNE_INLINE void store(float* p, vec16f a) {
  for (int k = 0; k < kParts; ++k) part_store(p + k * kPartLanes, a.v[k]);
}
CAUSALPRUNE_INLINE vec16f broadcast(float a) { CAUSALPRUNE_EACH_PART(part_broadcast(a)); }
CAUSALPRUNE_INLINE vec16f add(vec16f a, vec16f b) {
  CAUSALPRUNE_EACH_PART(part_add(a.v[k], b.v[k]));
}
CAUSALPRUNE_INLINE vec16f sub(vec16f a, vec16f b) {
  CAUSALPRUNE_EACH_PART(part_sub(a.v[k], b.v[k]));
}
CAUSALPRUNE_INLINE vec16f mul(vec16f a, vec16f b) {
  CAUSALPRUNE_EACH_PART(part_mul(a.v[k], b.v[k]));
}
CAUSALPRUNE_INLINE vec16f div(vec16f a, vec16f b) {
  CAUSALPRUNE_EACH_PART(part_div(a.v[k], b.v[k]));
}
CAUSALPRUNE_INLINE vec16f max(vec16f a, vec16f b) {
  CAUSALPRUNE_EACH_PART(part_max(a.v[k], b.v[k]));
}
CAUSALPRUNE_INLINE vec16f min(vec16f a, vec16f b) {
  CAUSALPRUNE_EACH_PART(part_min(a.v[k], b.v[k]));
}
CAUSALPRUNE_INLINE vec16f abs(vec16f a) { CAUSALPRUNE_EACH_PART(part_abs(a.v[k])); }
CAUSALPRUNE_INLINE vec16f fmadd(vec16f a, vec16f b, vec16f c) {
  CAUSALPRUNE_EACH_PART(part_fmadd(a.v[k], b.v[k], c.v[k]));
}
CAUSALPRUNE_INLINE vec16f fnmadd(vec16f a, vec16f b, vec16f c) {
  CAUSALPRUNE_EACH_PART(part_fnmadd(a.v[k], b.v[k], c.v[k]));
}
using signs16 = vec16f;
CAUSALPRUNE_INLINE signs16 sign_bits(vec16f a) { return a; }
CAUSALPRUNE_INLINE vec16f select(signs16 negative, vec16f a, vec16f b) {
  CAUSALPRUNE_EACH_PART(part_select(negative.v[k], a.v[k], b.v[k]));
}
CAUSALPRUNE_INLINE vec16f round_nearest(vec16f a) { CAUSALPRUNE_EACH_PART(part_round(a.v[k])); }
CAUSALPRUNE_INLINE vec16f pow2(vec16f n) { CAUSALPRUNE_EACH_PART(part_pow2(n.v[k])); }

#undef CAUSALPRUNE_EACH_PART

#endif

#if !defined(CAUSALPRUNE_ISA_AVX512)

CAUSALPRUNE_INLINE vec16f load_first(const float* p, int n) {
  float lane[kLanes] = {};
  for (int k = 0; k < n; ++k) lane[k] = p[k];
  return load(lane);
}
CAUSALPRUNE_INLINE void store_first(float* p, vec16f a, int n) {
  float lane[kLanes];
  store(lane, a);
  for (int k = 0; k < n; ++k) p[k] = lane[k];
}

#if defined(CAUSALPRUNE_ISA_AVX2)
// Lanes become rows: four 8x8 transpositions, the off-diagonal ones changing places.
CAUSALPRUNE_INLINE void transpose8(__m256 (&r)[8]) {
  __m256 t[8];
  CAUSALPRUNE_UNROLL for (int k = 0; k < 8; k += 4) {
    const __m256 lo0 = _mm256_unpacklo_ps(r[k], r[k + 1]);
    const __m256 hi0 = _mm256_unpackhi_ps(r[k], r[k + 1]);
    const __m256 lo1 = _mm256_unpacklo_ps(r[k + 2], r[k + 3]);
    const __m256 hi1 = _mm256_unpackhi_ps(r[k + 2], r[k + 3]);
    t[k] = _mm256_shuffle_ps(lo0, lo1, 0x44);
    t[k + 1] = _mm256_shuffle_ps(lo0, lo1, 0xee);
    t[k + 2] = _mm256_shuffle_ps(hi0, hi1, 0x44);
    t[k + 3] = _mm256_shuffle_ps(hi0, hi1, 0xee);
  }
  CAUSALPRUNE_UNROLL for (int k = 0; k < 4; ++k) {
    r[k] = _mm256_permute2f128_ps(t[k], t[k + 4], 0x20);
    r[k + 4] = _mm256_permute2f128_ps(t[k], t[k + 4], 0x31);
  }
}
CAUSALPRUNE_INLINE void transpose(vec16f (&a)[16]) {
  __m256 quarter[4][8];
  CAUSALPRUNE_UNROLL for (int k = 0; k < 8; ++k) {
    quarter[0][k] = a[k].lo;
    quarter[1][k] = a[k + 8].lo;
    quarter[2][k] = a[k].hi;
    quarter[3][k] = a[k + 8].hi;
  }
  CAUSALPRUNE_UNROLL for (int q = 0; q < 4; ++q) transpose8(quarter[q]);
  CAUSALPRUNE_UNROLL for (int k = 0; k < 8; ++k) {
    a[k] = {quarter[0][k], quarter[1][k]};
    a[k + 8] = {quarter[2][k], quarter[3][k]};
  }
}
#else
CAUSALPRUNE_INLINE void transpose(vec16f (&a)[16]) {
  float row[kLanes][kLanes], column[kLanes][kLanes];
  for (int k = 0; k < kLanes; ++k) store(row[k], a[k]);
  for (int k = 0; k < kLanes; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) column[lane][k] = row[k][lane];
  }
  for (int k = 0; k < kLanes; ++k) a[k] = load(column[k]);
}
#endif

#endif

CAUSALPRUNE_INLINE vec16f zero() { return broadcast(0.0f); }

// Whether any lane is infinite or not a number: exactly there a - a is not zero.
CAUSALPRUNE_INLINE bool any_nonfinite(vec16f a) {
  const vec16f difference = sub(a, a);
#if defined(CAUSALPRUNE_ISA_AVX512)
  return _mm512_cmp_ps_mask(difference.v, _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0;
#else
  float lane[kLanes];
  store(lane, difference);
  bool found = false;
  for (int k = 0; k < kLanes; ++k) found |= lane[k] != 0.0f;
  return found;
#endif
}

// Sum of the lanes, always in the same pairwise order, whatever the instruction set.
CAUSALPRUNE_INLINE float sum_lanes(vec16f a) {
  float lane[kLanes];
  store(lane, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  }
  return lane[0];
}

// e^a to about 1e-7 relative. Below -87 and above 88 the argument is clamped: the callers divide by
// one plus the result, where neither end can be told from its limit in float32.
CAUSALPRUNE_INLINE vec16f exp(vec16f a) {
  a = max(min(a, broadcast(88.0f)), broadcast(-87.0f));
  const vec16f n = round_nearest(mul(a, broadcast(1.44269504089f)));
  // ln 2 in two parts, so that a - n ln 2 keeps its low bits.
  vec16f r = fnmadd(n, broadcast(0.693359375f), a);
  r = fnmadd(n, broadcast(-2.12194440e-4f), r);
  // Taylor coefficients 1/k! suffice on |r| <= ln(2)/2: the first one left out is below 6e-8.
  vec16f p = broadcast(1.0f / 5040.0f);
  p = fmadd(p, r, broadcast(1.0f / 720.0f));
  p = fmadd(p, r, broadcast(1.0f / 120.0f));
  p = fmadd(p, r, broadcast(1.0f / 24.0f));
  p = fmadd(p, r, broadcast(1.0f / 6.0f));
  p = fmadd(p, r, broadcast(0.5f));
  p = fmadd(p, r, broadcast(1.0f));
  p = fmadd(p, r, broadcast(1.0f));
  return mul(p, pow2(n));
}

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
