// Where outputs lie. Plain arithmetic that a host compiler takes too.
#pragma once

#include <cstdint>

#include "cuda/convolution.cuh"

#if defined(__CUDACC__)
#define CAUSALPRUNE_HOST_DEVICE __host__ __device__
#define CAUSALPRUNE_DEVICE_UNROLL _Pragma("unroll")
#else
#define CAUSALPRUNE_HOST_DEVICE
#define CAUSALPRUNE_DEVICE_UNROLL
#endif

namespace causalprune::cuda {

constexpr int kLanes = 32;

CAUSALPRUNE_HOST_DEVICE inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

struct Position {
  std::int64_t image;  // below 0: none
  int y, x;
};

// The index-th position in the order [image, row, column].
CAUSALPRUNE_HOST_DEVICE inline Position flat_position(const ConvolutionProblem& p,
                                                      std::int64_t index) {
  const std::int64_t positions = p.out_height * p.out_width;
  if (index >= p.n_images * positions) return {-1, 0, 0};
  const std::int64_t within = index % positions;
  return {index / positions, static_cast<int>(within / p.out_width),
          static_cast<int>(within % p.out_width)};
}

}  // namespace causalprune::cuda
