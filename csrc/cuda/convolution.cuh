// What the CUDA convolutions share: the geometry they are given, and its checks.
#pragma once

#include <cstdint>

namespace causalprune {

enum class ConvolutionActivation : int { none, relu, relu6, hardswish, silu, gelu };

// Throws std::invalid_argument that lists the known names.
ConvolutionActivation convolution_activation_by_name(const char* name);

// Pointers are on the device. out and residual are contiguous, strides of x are in elements.
struct ConvolutionProblem {
  std::int64_t n_images, n_inputs, height, width;
  std::int64_t n_outputs, out_height, out_width;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_height, stride_width;
  std::int64_t padding_height, padding_width;
  std::int64_t dilation_height, dilation_width;
  std::int64_t groups;
  ConvolutionActivation activation;
  const float* x;  // [n_images, n_inputs, height, width]
  std::int64_t x_stride[4];
  const float* bias;      // one for each row of the weight, or null
  const float* residual;  // as out, or null
  float* out;             // [n_images, n_outputs, out_height, out_width]
};

// Throws std::invalid_argument for sizes that do not fit together or leave 32 bits in one axis.
void check_convolution(const ConvolutionProblem& problem);

}  // namespace causalprune
