// The loops of machine_rates, written once over vec16f and compiled once for each instruction set
// by cpu/machine_rates_<isa>.cpp. Raw pointers only: see common/vec16f.hpp for why.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/machine_rates.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// Enough independent sums for two operations a cycle of a latency of five, as far as registers go.
#if defined(CAUSALPRUNE_ISA_AVX512)
inline constexpr int kSums = 12;
#elif defined(CAUSALPRUNE_ISA_AVX2) || defined(CAUSALPRUNE_ISA_NEON)
inline constexpr int kSums = 7;
#else
inline constexpr int kSums = 2;
#endif

inline std::int64_t multiply_adds(std::int64_t rounds, float* sums) {
  vec16f sum[kSums];
  const vec16f factor = broadcast(sums[0]), addend = broadcast(sums[1]);
  // No two registers alike: a compiler that sees the same sum twice computes it once.
  CAUSALPRUNE_UNROLL for (int k = 0; k < kSums; ++k) {
    sum[k] = add(load(sums), broadcast(static_cast<float>(k)));
  }
  for (std::int64_t round = 0; round < rounds; ++round) {
    CAUSALPRUNE_UNROLL for (int k = 0; k < kSums; ++k) sum[k] = fmadd(sum[k], factor, addend);
  }
  CAUSALPRUNE_UNROLL for (int k = 0; k < kSums; ++k) store(sums, add(load(sums), sum[k]));
  return 2 * kLanes * kSums * rounds;
}

inline void add_all(const float* from, std::int64_t n, float* sums) {
  constexpr int kReads = kSums < 8 ? (kSums < 4 ? 2 : 4) : 8;
  static_assert(kReadFloats % (kReads * kLanes) == 0);
  vec16f sum[kReads];
  CAUSALPRUNE_UNROLL for (int k = 0; k < kReads; ++k) sum[k] = zero();
  for (std::int64_t at = 0; at < n; at += kReads * kLanes) {
    CAUSALPRUNE_UNROLL for (int k = 0; k < kReads; ++k) {
      sum[k] = add(sum[k], load(from + at + k * kLanes));
    }
  }
  CAUSALPRUNE_UNROLL for (int k = 0; k < kReads; ++k) store(sums, add(load(sums), sum[k]));
}

inline constexpr MachineKernels kMachine{&multiply_adds, &add_all};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
