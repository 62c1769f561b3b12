// Channel update: a convolution's output after a change of a few of its input channels.
//
// Formula. out[r, o, p] = plain[r, o, p] + sum over changed channels c and taps k of
//     weight[o, c, k] * difference[r, c, p * stride - padding + k * dilation],
// and, where `relu` asks for it, max(0, that). Work: c / I of running the layer again.
//
// Layout. Output channels are innermost (channels_last): the sixteen lanes are output channels, the
// difference is a broadcast scalar, so any kernel size, stride and dilation runs on one loop.
//
// Accumulators. float32, plain first, then channels and taps in ascending order.
// Tolerance against a float64 oracle: 1e-6 of |plain| + sum |weight * difference|.
// Limits. Sizes are int64 and checked. Workspace: a packed copy of the weight; of the difference,
// what some output rows of one image see, with its padding.
// Determinism. Every output has one owner and one order of summation: the same bits for any number
// of threads. Values that are not finite go through; a weight that is not finite meets the zeros of
// the padding, too. Thread safety: no state.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace causalprune {

// Strides are in elements. plain and out have channels innermost (stride 1).
struct ChannelUpdateProblem {
  std::int64_t n_rows, n_changed, height, width;
  std::int64_t n_outputs, out_height, out_width;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_height, stride_width;
  std::int64_t padding_height, padding_width;
  std::int64_t dilation_height, dilation_width;
  bool relu;
  const float* plain;  // [n_rows, n_outputs, out_height, out_width]
  std::int64_t plain_stride[4];
  const float* difference;  // [n_rows, n_changed, height, width]
  std::int64_t difference_stride[4];
  const float* weight;  // [n_outputs, n_changed, kernel_height, kernel_width]
  std::int64_t weight_stride[4];
  float* out;  // as plain
  std::int64_t out_stride[4];
};

// Throws std::invalid_argument for sizes and strides that do not fit together.
void check_channel_update(const ChannelUpdateProblem& problem);

// Fills out. `threads` is an upper bound. Throws std::invalid_argument for sizes that do not fit
// together, std::bad_alloc when the workspace cannot be had.
void channel_update(const ChannelUpdateProblem& problem, Isa isa, int threads);

// ---- what each instruction set provides ----

// Some neighbouring output rows of one image. The difference is there with its padding, so that
// every position sees every tap.
struct ChannelUpdateStrip {
  std::int64_t n_rows, n_positions, n_outputs, n_changed;
  std::int64_t kernel_height, kernel_width;
  const float* plain;  // [n_rows, n_positions, n_outputs]
  std::int64_t plain_row, plain_position;
  float* out;  // as plain
  std::int64_t out_row, out_position;
  const float* difference;  // [n_changed, rows, columns], of the first tap of the first position
  std::int64_t channel_step, row_step, position_step;  // to the next channel, row and position out
  std::int64_t tap_row_step, tap_column_step;
  const float* weight;  // [n_changed, kernel_height, kernel_width, lanes]
  std::int64_t lanes;   // outputs rounded up to sixteen
  bool relu;
};

struct ChannelUpdateKernels {
  void (*strip)(const ChannelUpdateStrip& strip);
};

extern const ChannelUpdateKernels kChannelUpdateScalar;
extern const ChannelUpdateKernels kChannelUpdateAvx2;
extern const ChannelUpdateKernels kChannelUpdateAvx512;
extern const ChannelUpdateKernels kChannelUpdateNeon;

}  // namespace causalprune
