#include "kernels/machine_rates.hpp"

#include <algorithm>
#include <cstring>

#include "common/aligned_array.hpp"
#include "common/clock.hpp"
#include "common/error.hpp"

namespace causalprune {

namespace {

constexpr int kRuns = 20;

const MachineKernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kMachineAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kMachineAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kMachineNeon;
#endif
    default: return kMachineScalar;
  }
}

// The best of kRuns runs, each of which returns how much it did.
template <class Run>
double best_rate(const Run& run) {
  double best = 0.0;
  for (int k = 0; k < kRuns; ++k) {
    const double begin = thread_seconds();
    const double done = run();
    best = std::max(best, done / (thread_seconds() - begin));
  }
  return best;
}

// Two columns of codes and their joint histogram.
struct Histogram {
  static constexpr int kSamples = 4096, kBits = 6, kTogether = 256;
  alignas(64) std::uint8_t row[kSamples], column[kSamples];
  alignas(64) std::uint16_t count[1 << 2 * kBits] = {};

  Histogram() {
    std::uint32_t state = 1;
    for (int k = 0; k < kSamples; ++k) {
      state = state * 1664525u + 1013904223u;
      row[k] = static_cast<std::uint8_t>(state >> (32 - kBits));
      column[k] = static_cast<std::uint8_t>(state >> (32 - 2 * kBits) & ((1 << kBits) - 1));
    }
  }

  // Codes become cells many at a time, and cells are read four at a time: what is left is the
  // increments themselves.
  void add() {
    alignas(64) std::uint16_t cell[kTogether];
    for (int first = 0; first < kSamples; first += kTogether) {
      for (int k = 0; k < kTogether; ++k) {
        cell[k] = static_cast<std::uint16_t>(row[first + k] << kBits | column[first + k]);
      }
      for (int k = 0; k < kTogether; k += 4) {
        std::uint64_t cells;
        std::memcpy(&cells, cell + k, sizeof cells);
        ++count[cells & 0xffff];
        ++count[cells >> 16 & 0xffff];
        ++count[cells >> 32 & 0xffff];
        ++count[cells >> 48];
      }
    }
  }
};

}  // namespace

double peak_gflops(Isa isa) {
  return best_rate([&] {
           float sums[16];
           std::fill_n(sums, 16, 0.5f);
           return static_cast<double>(kernels_of(isa).multiply_adds(20000, sums));
         }) /
         1e9;
}

double read_gigabytes_per_second(std::int64_t bytes, Isa isa) {
  constexpr std::int64_t kStep = kReadFloats * sizeof(float);
  if (bytes < kStep) fail("bytes: expected at least ", kStep, ", got ", bytes);
  const std::int64_t floats = bytes / kStep * kReadFloats;
  const AlignedArray<float> values = aligned_array<float>(floats);
  std::fill_n(values.get(), floats, 1.0f);
  constexpr double kBytesInRun = 64e6;
  const double read = static_cast<double>(floats) * sizeof(float);
  const auto passes = std::max<std::int64_t>(1, static_cast<std::int64_t>(kBytesInRun / read));
  float sums[16] = {};
  return best_rate([&] {
           for (std::int64_t pass = 0; pass < passes; ++pass) {
             kernels_of(isa).add_all(values.get(), floats, sums);
           }
           return read * static_cast<double>(passes);
         }) /
         1e9;
}

double increments_per_second() {
  Histogram histogram;
  volatile std::uint16_t witness = 0;
  return best_rate([&] {
    constexpr int kPasses = 512;
    for (int pass = 0; pass < kPasses; ++pass) histogram.add();
    witness = histogram.count[0];  // the counts are needed, whatever a compiler thinks
    return static_cast<double>(kPasses) * Histogram::kSamples;
  });
}

}  // namespace causalprune
