// What one thread of this machine reaches at most: the ceilings that kernels are measured against.
//
// CPU time of the calling thread, the best of several runs of about a millisecond. Thread-safe.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace causalprune {

struct MachineKernels {
  // Multiply-adds on registers alone, `rounds` times; returns how many floating-point operations.
  std::int64_t (*multiply_adds)(std::int64_t rounds, float* sums);
  // Adds n floats, a multiple of kReadFloats, to sixteen sums.
  void (*add_all)(const float* from, std::int64_t n, float* sums);
};

extern const MachineKernels kMachineScalar;
extern const MachineKernels kMachineAvx2;
extern const MachineKernels kMachineAvx512;
extern const MachineKernels kMachineNeon;

// What add_all reads in one round: 1 KiB.
inline constexpr std::int64_t kReadFloats = 256;

// Multiply-adds on registers, in 1e9 floating-point operations a second.
double peak_gflops(Isa isa);

// Reading `bytes` again and again from first to last, in 1e9 bytes a second: of the innermost cache
// that holds them, or of memory. Throws std::invalid_argument below 1 KiB, std::bad_alloc.
double read_gigabytes_per_second(std::int64_t bytes, Isa isa);

// Increments a second of a histogram of 64 x 64 counts (16 bits) for two columns of precomputed
// 8-bit codes, all in the innermost cache.
double increments_per_second();

}  // namespace causalprune
