// The sizes of a channel_update on CUDA, checked.

#include <algorithm>

#include "common/error.hpp"
#include "cuda/channel_update_tile.cuh"

namespace causalprune::cuda {

namespace {

template <class Value>
LastChannels<Value> last_channels(Value* values, const std::int64_t (&stride)[4]) {
  return {values, stride[0], stride[2], stride[3]};
}

template <class Value>
bool aligned_by_four(const LastChannels<Value>& t) {
  return reinterpret_cast<std::uintptr_t>(t.values) % sizeof(Four) == 0 &&
         t.image_stride % 4 == 0 && t.row_stride % 4 == 0 && t.column_stride % 4 == 0;
}

}  // namespace

ChannelUpdateLaunch plan_channel_update(const ChannelUpdateProblem& p) {
  check_channel_update(p);
  ChannelUpdateLaunch launch{};
  ConvolutionProblem& c = launch.p;
  c.n_images = p.n_rows, c.n_inputs = p.n_changed, c.height = p.height, c.width = p.width;
  c.n_outputs = p.n_outputs, c.out_height = p.out_height, c.out_width = p.out_width;
  c.kernel_height = p.kernel_height, c.kernel_width = p.kernel_width;
  c.stride_height = p.stride_height, c.stride_width = p.stride_width;
  c.padding_height = p.padding_height, c.padding_width = p.padding_width;
  c.dilation_height = p.dilation_height, c.dilation_width = p.dilation_width;
  c.groups = 1;
  c.x = p.difference;
  std::copy_n(p.difference_stride, 4, c.x_stride);
  if (c.out_height > 0 && c.out_width > 0) check_convolution(c);
  checked_product(c.n_inputs, c.kernel_height * c.kernel_width);
  launch.rows = {p.weight, p.weight_stride[0], p.weight_stride[1], p.weight_stride[2],
                 p.weight_stride[3]};
  launch.plain = last_channels(p.plain, p.plain_stride);
  launch.out = last_channels(p.out, p.out_stride);
  launch.epilogue.relu = p.relu;
  launch.by_four =
      p.n_outputs % 4 == 0 && aligned_by_four(launch.plain) && aligned_by_four(launch.out);
  launch.near_channels = near_channels(c);
  return launch;
}

}  // namespace causalprune::cuda
