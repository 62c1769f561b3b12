// How channel_conv2d becomes a matrix product: rows are listed output channels of a group, columns
// are positions in the order [image, row, column], and the inner dimension runs over
// [kernel row, kernel column, listed input]. Plain arithmetic that a host compiler takes too.
#pragma once

#include <cstdint>

#include "cuda/channel_conv2d.cuh"
#include "cuda/convolution_positions.cuh"

namespace causalprune::cuda {

// What the inner index k stands for.
struct InnerTerm {
  std::int64_t offset;  // from the position's first tap in channel 0
  int row, column;      // of the tap, from the position's first
};

// Outside of any image, whatever is added: coordinates are below 2**30.
constexpr int kNowhere = -(1 << 30);

CAUSALPRUNE_HOST_DEVICE inline InnerTerm inner_term(const ConvolutionProblem& p,
                                                    const ChannelWeight& w, std::int64_t group,
                                                    int k, int n_inner) {
  if (k >= n_inner) return {0, kNowhere, kNowhere};
  const auto columns = static_cast<int>(w.n_columns / p.groups);
  const auto width = static_cast<int>(p.kernel_width);
  const int tap = k / columns;
  const std::int64_t channel = w.inputs[group * columns + k % columns];
  if (channel < 0 || channel >= p.n_inputs) return {0, kNowhere, kNowhere};
  const std::int64_t row = tap / width * p.dilation_height;
  const std::int64_t column = tap % width * p.dilation_width;
  return {channel * p.x_stride[1] + row * p.x_stride[2] + column * p.x_stride[3],
          static_cast<int>(row), static_cast<int>(column)};
}

// A column of the product: where its first tap lies, which may be outside of the image.
struct ColumnStart {
  std::int64_t offset;
  int row, column;
};

CAUSALPRUNE_HOST_DEVICE inline ColumnStart start_of(const ConvolutionProblem& p,
                                                    const Position& at) {
  if (at.image < 0) return {0, kNowhere, kNowhere};
  const std::int64_t row = at.y * p.stride_height - p.padding_height;
  const std::int64_t column = at.x * p.stride_width - p.padding_width;
  return {at.image * p.x_stride[0] + row * p.x_stride[2] + column * p.x_stride[3],
          static_cast<int>(row), static_cast<int>(column)};
}

CAUSALPRUNE_HOST_DEVICE inline ColumnStart column_start(const ConvolutionProblem& p,
                                                        std::int64_t index) {
  return start_of(p, flat_position(p, index));
}

CAUSALPRUNE_HOST_DEVICE inline bool inside(const ConvolutionProblem& p, const ColumnStart& start,
                                           const InnerTerm& term) {
  // Below zero is far above as unsigned.
  return static_cast<unsigned>(start.row + term.row) < static_cast<unsigned>(p.height) &&
         static_cast<unsigned>(start.column + term.column) < static_cast<unsigned>(p.width);
}

}  // namespace causalprune::cuda
