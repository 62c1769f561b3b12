// Does it pay to store activations as bfloat16 and add up in float32? The tap loop of a sparse
// convolution, fourteen vectors wide, on activations that lie in the first, second or third level
// of cache or in memory: float32, bfloat16 widened as it is loaded, and two adjacent channels by
// vdpbf16ps, which unstructured zeros can use only where both weights are there.
//
//   bench_bf16_storage [seconds a figure]

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "common/clock.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

namespace {

using causalprune::thread_seconds;

constexpr int kVectors = 14;  // positions of sixteen lanes a tap adds to
constexpr int kTaps = 512;    // of one output row, spread at random over the activations
#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

// A load that crosses a line of the cache costs two.
struct alignas(64) Line {
  float wide[16];
};

struct Problem {
  std::vector<Line> wide, narrow;
  std::vector<std::int64_t> places;  // of the vectors that taps begin with
  std::vector<float> weights;
};

Problem problem(std::int64_t bytes) {
  std::mt19937 random(7);
  const std::int64_t vectors = bytes / 64;
  Problem p{std::vector<Line>(vectors), std::vector<Line>(vectors), {}, {}};
  for (Line& line : p.wide) {
    for (float& each : line.wide) each = 1.0f + static_cast<float>(random() % 64) / 64;
  }
  for (Line& line : p.narrow) {  // two numbers near 1 in every word
    for (float& each : line.wide) {
      const std::uint32_t word = 0x3f803f80u + random() % 64 * 0x10001u;
      std::memcpy(&each, &word, sizeof word);
    }
  }
  const std::int64_t tiles = vectors / kVectors - 1;
  for (int k = 0; k < kTaps; ++k) {
    p.places.push_back(static_cast<std::int64_t>(random() % tiles) * kVectors);
    p.weights.push_back(static_cast<float>(random() % 64) / 64 - 0.5f);
  }
  return p;
}

BF16 float add_wide(const Problem& p) {
  __m512 sums[kVectors];
  for (auto& each : sums) each = _mm512_setzero_ps();
  for (int k = 0; k < kTaps; ++k) {
    const float* at = p.wide[p.places[k]].wide;
    const __m512 w = _mm512_set1_ps(p.weights[k]);
#pragma GCC unroll 14
    for (int v = 0; v < kVectors; ++v) {
      sums[v] = _mm512_fmadd_ps(w, _mm512_load_ps(at + v * 16), sums[v]);
    }
  }
  float total = 0;
  for (const auto& each : sums) total += _mm512_reduce_add_ps(each);
  return total;
}

BF16 float add_widened(const Problem& p) {
  __m512 sums[kVectors];
  for (auto& each : sums) each = _mm512_setzero_ps();
  for (int k = 0; k < kTaps; ++k) {
    const auto* at = reinterpret_cast<const std::uint16_t*>(p.narrow[p.places[k] / 2].wide);
    const __m512 w = _mm512_set1_ps(p.weights[k]);
#pragma GCC unroll 14
    for (int v = 0; v < kVectors; ++v) {
      const __m256i half = _mm256_load_si256(reinterpret_cast<const __m256i*>(at + v * 16));
      const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
      sums[v] = _mm512_fmadd_ps(w, _mm512_castsi512_ps(bits), sums[v]);
    }
  }
  float total = 0;
  for (const auto& each : sums) total += _mm512_reduce_add_ps(each);
  return total;
}

// Half as many taps, each of two channels.
BF16 float add_pairs(const Problem& p) {
  __m512 sums[kVectors];
  for (auto& each : sums) each = _mm512_setzero_ps();
  for (int k = 0; k < kTaps; k += 2) {
    const auto* at = reinterpret_cast<const std::uint16_t*>(p.narrow[p.places[k]].wide);
    const __m512bh w =
        _mm512_cvtne2ps_pbh(_mm512_set1_ps(p.weights[k]), _mm512_set1_ps(p.weights[k]));
#pragma GCC unroll 14
    for (int v = 0; v < kVectors; ++v) {
      const __m512i both = _mm512_load_si512(at + v * 32);
      sums[v] = _mm512_dpbf16_ps(sums[v], w, (__m512bh)both);
    }
  }
  float total = 0;
  for (const auto& each : sums) total += _mm512_reduce_add_ps(each);
  return total;
}

float sink = 0;

// Useful GFLOP/s: the best of many short windows.
double rate(float (*add)(const Problem&), const Problem& p, double seconds) {
  sink += add(p);
  double best = 1e9, spent = 0;
  while (spent < seconds) {
    const double begin = thread_seconds();
    for (int k = 0; k < 50; ++k) sink += add(p);
    const double took = thread_seconds() - begin;
    best = took < best ? took : best;
    spent += took;
  }
  return 50.0 * kTaps * kVectors * 16 * 2 / best / 1e9;
}

}  // namespace

int main(int count, char** arguments) {
  if (!__builtin_cpu_supports("avx512bf16")) {
    std::printf("this processor has no bfloat16 instructions\n");
    return 0;
  }
  const double seconds = count > 1 ? std::atof(arguments[1]) : 0.5;
  std::printf("float32 bytes,float32 GFLOP/s,bfloat16 widened,bfloat16 pairs of channels\n");
  for (const std::int64_t kib : {32, 256, 4096, 131072}) {
    const Problem p = problem(kib * 1024);
    std::printf("%lld KiB,%.0f,%.0f,%.0f\n", static_cast<long long>(kib),
                rate(add_wide, p, seconds), rate(add_widened, p, seconds),
                rate(add_pairs, p, seconds));
  }
  return sink == 12345.0f ? 1 : 0;
}
#else
int main() {
  std::printf("written for x86-64 and GCC or clang\n");
  return 0;
}
#endif
