// Checks the geometry of a convolution before anything is launched.

#include "cuda/convolution.cuh"

#include <cstring>

#include "common/error.hpp"

namespace causalprune {

namespace {

constexpr std::int64_t kLargest = (std::int64_t{1} << 31) - 1;
constexpr std::int64_t kLargestAxis = std::int64_t{1} << 30;

void check_axis(const char* axis, std::int64_t size, std::int64_t kernel, std::int64_t stride,
                std::int64_t padding, std::int64_t dilation, std::int64_t out) {
  if (kernel < 1 || kernel > kLargest)
    fail("weight: expected a kernel of at least 1, got ", kernel);
  if (stride < 1 || stride > kLargest) fail("stride: expected at least 1, got ", stride);
  if (padding < 0 || padding > kLargest) fail("padding: expected at least 0, got ", padding);
  if (dilation < 1 || dilation > kLargest) fail("dilation: expected at least 1, got ", dilation);
  // Sums of any two coordinates then fit in 32 bits.
  if (size > kLargest || size + 2 * padding >= kLargestAxis) {
    fail("x: expected a padded ", axis, " below 2**30, got ", size, " + 2 * ", padding);
  }
  const std::int64_t span = dilation * (kernel - 1) + 1, padded = size + 2 * padding;
  if (span > padded) {
    fail("weight: expected a kernel that fits in the padded ", axis, " ", padded, ", got ", span);
  }
  const std::int64_t expected = (padded - span) / stride + 1;
  if (out != expected) fail("out: expected a ", axis, " of ", expected, ", got ", out);
}

}  // namespace

ConvolutionActivation convolution_activation_by_name(const char* name) {
  static constexpr const char* kNames[] = {"none", "relu", "relu6", "hardswish", "silu", "gelu"};
  for (int k = 0; k < 6; ++k) {
    if (std::strcmp(name, kNames[k]) == 0) return static_cast<ConvolutionActivation>(k);
  }
  fail("activation: expected one of gelu, hardswish, none, relu, relu6, silu, got '", name, "'");
}

void check_convolution(const ConvolutionProblem& p) {
  if (p.groups < 1) fail("groups: expected at least 1, got ", p.groups);
  check_axis("height", p.height, p.kernel_height, p.stride_height, p.padding_height,
             p.dilation_height, p.out_height);
  check_axis("width", p.width, p.kernel_width, p.stride_width, p.padding_width, p.dilation_width,
             p.out_width);
  checked_product(checked_product(p.n_images, p.n_inputs), checked_product(p.height, p.width));
  checked_product(checked_product(p.n_images, p.n_outputs),
                  checked_product(p.out_height, p.out_width));
  if (checked_product(p.kernel_height, p.kernel_width) > kLargest) {
    fail("weight: expected fewer than 2**31 taps, got ", p.kernel_height, " * ", p.kernel_width);
  }
}

}  // namespace causalprune
