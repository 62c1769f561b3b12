// channel_conv2d on CUDA: a convolution of some input channels into some output channels, in place
// in tensors of full width; nothing is gathered.
//
// Formula. out[n, outputs[r], p] = activation(bias[r] + sum over the listed inputs i of r's group
//     and taps k of weight[r, i, k] * x[n, inputs[i], p * stride - padding + k * dilation]
//     + residual[n, outputs[r], p]); out of every other channel is activation(residual), or 0.
//
// Accumulators. float32, taps by kernel row, kernel column, listed input, then bias and residual.
// Tolerance against a float64 oracle: 1e-5 of the sum of |weight * x| + |bias| + |residual|.
// Limits. Fewer than 2**31 taps times inputs; sizes are int64 and checked.
// Determinism. Every output has one owner and one order of summation.
#pragma once

#include <cstdint>

#include "cuda/convolution.cuh"

namespace causalprune {

// On the device. Lists without repeats; `others` are the output channels that `outputs` lacks.
struct ChannelWeight {
  std::int64_t n_rows, n_columns, n_others;  // length of outputs, inputs, others
  const std::int64_t* inputs;
  const std::int64_t* outputs;
  const std::int64_t* others;
  // [groups, kernel_height, kernel_width, n_columns / groups, n_rows / groups]
  const float* weight;
};

// Launches on `stream` of `device` and returns without waiting. Throws std::invalid_argument for
// sizes that do not fit together and CudaError for a failed launch. A listed channel that is out of
// range is neither read nor written.
void channel_conv2d_cuda(const ConvolutionProblem& problem, const ChannelWeight& weight, int device,
                         void* stream);

}  // namespace causalprune
