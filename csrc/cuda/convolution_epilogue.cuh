// The end of a convolution in registers: activations, and asynchronous copies into shared memory.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/convolution.cuh"

namespace causalprune::cuda {

// NaN stays NaN, and infinities become what torch makes of them.
__device__ inline float activated(float v, ConvolutionActivation activation) {
  switch (activation) {
    case ConvolutionActivation::relu: return !(v <= 0.0f) ? v : 0.0f;
    case ConvolutionActivation::relu6: return !(v <= 0.0f) ? (v >= 6.0f ? 6.0f : v) : 0.0f;
    case ConvolutionActivation::hardswish: {
      const float gate = v + 3.0f;
      return v * (gate <= 0.0f ? 0.0f : (gate >= 6.0f ? 6.0f : gate)) * (1.0f / 6.0f);
    }
    case ConvolutionActivation::silu: return v / (1.0f + expf(-v));
    case ConvolutionActivation::gelu: return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    case ConvolutionActivation::none: break;
  }
  return v;
}

// The value of out at element `at`, for the row's bias and the sum over its taps.
__device__ inline float finished(const ConvolutionProblem& p, float sum, float bias,
                                 std::int64_t at) {
  float value = sum + bias;
  if (p.residual != nullptr) value += p.residual[at];
  return activated(value, p.activation);
}

// One float on its way to shared memory, or a zero: nothing is read then.
__device__ inline void copy_async(float* to, const float* from, bool wanted) {
  __pipeline_memcpy_async(to, from, 4, wanted ? 0 : 4);
}

}  // namespace causalprune::cuda
