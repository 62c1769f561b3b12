#include "kernels/path_effects_split.hpp"

#include <algorithm>

#include "common/error.hpp"
#include "kernels/path_effects_density.hpp"

namespace causalprune {

namespace {

// Of a prepared tile: within a 32 KiB L1 cache where three loads meet one weight; where they meet
// nine, the L2 cache keeps up, and more positions share what an input costs.
constexpr std::int64_t kPointwiseTileBytes = 24 * 1024;
constexpr std::int64_t kTapsTileBytes = 44 * 1024;
constexpr std::int64_t kMaxColumns = 64;
constexpr std::int64_t kFlushPositions = 2048;       // float32 sums stay this short
constexpr std::int64_t kPartialBytes = 1024 * 1024;  // running sums of a task within the L2 cache
constexpr std::int64_t kInputsPerTask = 256;
constexpr std::int64_t kImageChunks = 4;
constexpr std::int64_t kChunkedEdges = 32768;  // beyond, there are inputs enough to share out
constexpr std::int64_t kFewInputs = 16;   // below this, what inputs share costs more than they do
constexpr std::int64_t kSmallImage = 16;  // fewer positions than this: tiles span images

}  // namespace

PathEffectsProblem with_rows_joined(PathEffectsProblem p) {
  const bool pointwise = p.kernel_height == 1 && p.kernel_width == 1 && p.stride_height == 1 &&
                         p.stride_width == 1 && p.padding_height == 0 && p.padding_width == 0;
  if (!pointwise) return p;
  const auto join = [&p](std::int64_t (&stride)[4], bool commit) {
    const bool joins = p.height == 1 || p.width == 1 || stride[2] == p.width * stride[3];
    if (commit && p.width == 1) stride[3] = stride[2];
    return joins;
  };
  if (!join(p.x_stride, false) || !join(p.pre_stride, false) ||
      (p.grad != nullptr && !join(p.grad_stride, false))) {
    return p;
  }
  join(p.x_stride, true);
  join(p.pre_stride, true);
  join(p.grad_stride, true);
  p.width = p.out_width = p.height * p.width;
  p.height = p.out_height = 1;
  return p;
}

bool is_dense_3x3(const PathEffectsProblem& p) {
  return p.kernel_height == 3 && p.kernel_width == 3 && p.stride_height == 1 &&
         p.stride_width == 1 && p.dilation_height == 1 && p.dilation_width == 1;
}

Split split_of(const PathEffectsProblem& p, const PathKernels& kernels, std::int64_t threads) {
  Split s{};
  s.inputs = p.n_inputs / p.groups;
  s.outputs = p.n_outputs / p.groups;
  s.blocks = ceil_div(s.outputs, kLanes);
  s.taps = p.kernel_height * p.kernel_width;
  s.pointwise = s.taps == 1;
  s.tile_blocks = 1;
  if (s.pointwise) {
    s.tile_blocks = kernels.pointwise_blocks;
    s.dense_from = dense_from(kernels, p.activation);
  } else if (is_dense_3x3(p) && is_piecewise_linear(p.activation)) {
    s.tile_blocks = kernels.tap_blocks;
  }
  if (s.blocks < s.tile_blocks) s.tile_blocks = 1;

  const std::int64_t positions = p.out_height * p.out_width;
  const std::int64_t fit =
      (s.pointwise ? kPointwiseTileBytes : kTapsTileBytes) / (3 * kLanes * 4 * s.tile_blocks);
  const std::int64_t wide = std::min(fit, kMaxColumns);
  s.tile_columns = ceil_div(p.out_width, ceil_div(p.out_width, wide));
  const std::int64_t rows = std::clamp<std::int64_t>(fit / s.tile_columns, 1, p.out_height);
  s.tile_rows = ceil_div(p.out_height, ceil_div(p.out_height, rows));
  const bool spans_images = s.pointwise && positions < kSmallImage;
  s.tile_images = spans_images ? std::max<std::int64_t>(1, fit / positions) : 1;
  s.tile_images = std::min(s.tile_images, p.n_images);
  s.tile_positions = s.tile_images * s.tile_rows * s.tile_columns;
  s.x_rows = (s.tile_rows - 1) * p.stride_height + (p.kernel_height - 1) * p.dilation_height + 1;
  s.x_pitch = (s.tile_columns - 1) * p.stride_width + (p.kernel_width - 1) * p.dilation_width + 1;

  // Few inputs: the outputs are cut too, and their parts of `unit` added up afterwards.
  const std::int64_t wanted_blocks = ceil_div(kFewInputs, p.n_inputs);
  s.block_chunk = ceil_div(s.blocks, std::min(s.blocks, wanted_blocks));
  s.block_chunks = ceil_div(s.blocks, s.block_chunk);
  // Images before inputs: tasks that share images would each bring the same tiles in.
  const bool by_image = checked_product(p.n_outputs, s.inputs) <= kChunkedEdges;
  s.image_chunk = ceil_div(p.n_images, by_image ? std::min(kImageChunks, p.n_images) : 1);
  s.image_chunk = ceil_div(s.image_chunk, s.tile_images) * s.tile_images;
  s.image_chunks = ceil_div(p.n_images, s.image_chunk);
  const std::int64_t wanted_inputs =
      ceil_div(2 * threads, s.block_chunks * s.image_chunks * p.groups);
  const std::int64_t input_chunks =
      std::max(ceil_div(s.inputs, kInputsPerTask),
               threads > 1 ? std::min(wanted_inputs, ceil_div(s.inputs, kFewInputs)) : 1);
  s.input_chunk = ceil_div(s.inputs, input_chunks);
  s.input_chunks = ceil_div(s.inputs, s.input_chunk);
  // By the chunk of one thread: `unit` adds these blocks up in float32, for any number of threads.
  const std::int64_t shape_chunk = ceil_div(s.inputs, ceil_div(s.inputs, kInputsPerTask));
  const std::int64_t partial_bytes = shape_chunk * kEdgeStatistics * kLanes * 4;
  s.blocks_at_once = std::clamp<std::int64_t>(kPartialBytes / partial_bytes, 1, s.block_chunk);
  if (s.blocks_at_once > s.tile_blocks) s.blocks_at_once -= s.blocks_at_once % s.tile_blocks;
  s.flush_images = std::max(s.tile_images, kFlushPositions / positions);
  return s;
}

}  // namespace causalprune
