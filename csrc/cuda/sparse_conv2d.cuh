// sparse_conv2d on CUDA: a convolution that reads the nonzero weights only.
//
// Formula. out[n, o, p] = activation(bias[o] + sum over the nonzeros (i, k) of row o of
//     weight[o, i, k] * x[n, i, p * stride - padding + k * dilation] + residual[n, o, p]).
// A weight that is zero is not there: 0 * inf is not computed. Zeros of the padding are numbers.
//
// Accumulators. float32, nonzeros by channel, kernel row, kernel column, then bias and residual.
// Tolerance against a float64 oracle: 1e-5 of the sum of |weight * x| + |bias| + |residual|.
// Limits. 2**20 input channels a group, kernels up to 64 x 64; sizes are int64 and checked.
// Determinism. Every output has one owner and one order of summation.
#pragma once

#include <cstdint>

#include "cuda/convolution.cuh"

namespace causalprune {

// The nonzeros of the weight, on the device. Slots are the output channels in the order in which
// warps take them: those of a group stay together, the fullest first.
struct SparseWeight {
  const std::int64_t* channel;    // [n_outputs] of slot s
  const std::int64_t* row_start;  // [n_outputs + 1] first entry of slot s
  const std::int32_t* entries;  // [row_start[n_outputs], 2]: channel << 12 | ky << 6 | kx, and the
                                // value's bits; sorted within a slot
  std::int64_t n_entries;
};

// Launches on `stream` of `device` and returns without waiting. Throws std::invalid_argument for
// sizes that do not fit together and CudaError for a failed launch. The lists are on the device and
// are not read back: that they belong to a weight of this shape is the caller's to know.
void sparse_conv2d_cuda(const ConvolutionProblem& problem, const SparseWeight& weight, int device,
                        void* stream);

}  // namespace causalprune
