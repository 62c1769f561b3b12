// How sparse_conv2d cuts its output into tiles and lays a tile's inputs out in shared memory. Plain
// arithmetic that a host compiler takes too.
//
// A tile is what one block computes: 32 lanes times R rows of positions, for many output channels.
// - Patches (any kernel): four patches of 8 columns times R rows, of one image or of several. The
//   lanes of a warp are 8 columns times 4 patches.
// - Flat (1x1 kernels): 32 * R neighbouring positions in the order [image, row, column], which run
//   on over the ends of rows and images, so that small maps waste nothing.
// In shared memory the columns of an input row are sorted by their remainder modulo the stride
// (phases): the inputs of neighbouring outputs are then neighbours for any stride, and a tap is one
// constant distance from the position. Patches begin 8 or 24 words apart modulo 32 banks: a warp's
// load never meets a bank twice.
#pragma once

#include <cstdint>

#include "cuda/convolution_positions.cuh"

namespace causalprune::cuda {

constexpr int kPatchColumns = 8;
constexpr int kPatches = kLanes / kPatchColumns;

// All in words of four bytes.
struct SparseTile {
  bool flat;
  int rows;                       // R
  int phase_pitch, row_pitch;     // one phase of an input row, all phases
  int row_step;                   // between the inputs of one output row and of the next
  int input_rows, input_columns;  // of a patch
  int patch_pitch;
  int plane;                            // one input channel
  std::int64_t patch_rows, patch_cols;  // patches of an image
  std::int64_t n_patches, n_tiles;      // of all images
};

CAUSALPRUNE_HOST_DEVICE inline bool pointwise(const ConvolutionProblem& p) {
  return p.kernel_height == 1 && p.kernel_width == 1;
}

inline SparseTile flat_tile(const ConvolutionProblem& p, int rows) {
  SparseTile t{};
  t.flat = true;
  t.rows = rows;
  t.row_step = kLanes;
  t.plane = kLanes * rows;
  t.n_tiles = ceil_div(p.n_images * p.out_height * p.out_width, t.plane);
  return t;
}

// `least_row_step`: what the row step is rounded up to, a multiple of both strides. A plane beyond
// 32 bits comes back as 0: such a tile has no place.
inline SparseTile patch_tile(const ConvolutionProblem& p, int rows, std::int64_t least_row_step) {
  SparseTile t{};
  t.rows = rows;
  const std::int64_t columns =
      (kPatchColumns - 1) * p.stride_width + (p.kernel_width - 1) * p.dilation_width + 1;
  const std::int64_t input_rows =
      (rows - 1) * p.stride_height + (p.kernel_height - 1) * p.dilation_height + 1;
  constexpr std::int64_t kMost = 1 << 20;  // far beyond any shared memory, far below 32 bits
  if (columns > kMost || input_rows > kMost || p.stride_width > kMost || p.stride_height > kMost) {
    return t;
  }
  std::int64_t phase_pitch = ceil_div(columns, p.stride_width);
  const std::int64_t step = p.stride_width * p.stride_height;
  if (least_row_step > phase_pitch * step) phase_pitch = least_row_step / step;
  const std::int64_t row_pitch = phase_pitch * p.stride_width;
  std::int64_t patch_pitch = ceil_div(input_rows * row_pitch, 8) * 8;
  if (patch_pitch % 16 == 0) patch_pitch += 8;
  if (patch_pitch > kMost) return t;
  t.phase_pitch = static_cast<int>(phase_pitch);
  t.row_pitch = static_cast<int>(row_pitch);
  t.row_step = static_cast<int>(row_pitch * p.stride_height);
  t.input_rows = static_cast<int>(input_rows);
  t.input_columns = static_cast<int>(columns);
  t.patch_pitch = static_cast<int>(patch_pitch);
  t.plane = kPatches * t.patch_pitch;
  t.patch_rows = ceil_div(p.out_height, rows);
  t.patch_cols = ceil_div(p.out_width, kPatchColumns);
  t.n_patches = p.n_images * t.patch_rows * t.patch_cols;
  t.n_tiles = ceil_div(t.n_patches, kPatches);
  return t;
}

// ---- positions ----

// The first position of a patch.
CAUSALPRUNE_HOST_DEVICE inline Position patch_position(const SparseTile& t, std::int64_t patch) {
  if (patch >= t.n_patches) return {-1, 0, 0};
  const std::int64_t of_image = t.patch_rows * t.patch_cols, within = patch % of_image;
  return {patch / of_image, static_cast<int>(within / t.patch_cols) * t.rows,
          static_cast<int>(within % t.patch_cols) * kPatchColumns};
}

// The output position of a lane's r-th row.
CAUSALPRUNE_HOST_DEVICE inline Position position_of(const ConvolutionProblem& p,
                                                    const SparseTile& t, std::int64_t tile,
                                                    int lane, int r) {
  if (t.flat) return flat_position(p, tile * t.plane + r * kLanes + lane);
  Position at = patch_position(t, tile * kPatches + lane / kPatchColumns);
  at.y += r;
  at.x += lane % kPatchColumns;
  if (at.y >= p.out_height || at.x >= p.out_width) at.image = -1;
  return at;
}

// ---- shared memory ----

// Where a lane's first position begins within a plane.
CAUSALPRUNE_HOST_DEVICE inline int lane_word(const SparseTile& t, int lane) {
  return t.flat ? lane : lane / kPatchColumns * t.patch_pitch + lane % kPatchColumns;
}

// Distance of a tap from the position, without the channel.
CAUSALPRUNE_HOST_DEVICE inline int tap_row_word(const ConvolutionProblem& p, const SparseTile& t,
                                                int ky) {
  return static_cast<int>(ky * p.dilation_height) * t.row_pitch;
}
CAUSALPRUNE_HOST_DEVICE inline int tap_column_word(const ConvolutionProblem& p, const SparseTile& t,
                                                   int kx) {
  const auto column = static_cast<int>(kx * p.dilation_width);
  const auto stride = static_cast<int>(p.stride_width);
  return column % stride * t.phase_pitch + column / stride;
}

// The element of x, in channel 0, that a word of the plane holds; below 0: a zero.
CAUSALPRUNE_HOST_DEVICE inline std::int64_t source_of(const ConvolutionProblem& p,
                                                      const SparseTile& t, std::int64_t tile,
                                                      int word) {
  Position at;
  std::int64_t row = 0, column = 0;
  if (t.flat) {
    at = flat_position(p, tile * t.plane + word);
  } else {
    const int within = word % t.patch_pitch, in_row = within % t.row_pitch;
    at = patch_position(t, tile * kPatches + word / t.patch_pitch);
    row = within / t.row_pitch;
    column = in_row % t.phase_pitch * p.stride_width + in_row / t.phase_pitch;
    if (row >= t.input_rows || column >= t.input_columns) return -1;
  }
  if (at.image < 0) return -1;
  row += at.y * p.stride_height - p.padding_height;
  column += at.x * p.stride_width - p.padding_width;
  if (row < 0 || row >= p.height || column < 0 || column >= p.width) return -1;
  return at.image * p.x_stride[0] + row * p.x_stride[2] + column * p.x_stride[3];
}

// ---- nonzeros ----

// A nonzero's place in its row: 20 bits of channel within the group, 6 of kernel row, 6 of column.
constexpr int kTapBits = 6;
constexpr std::int64_t kMostTaps = 1 << kTapBits;
constexpr std::int64_t kMostChannels = 1 << 20;

CAUSALPRUNE_HOST_DEVICE inline int channel_of(std::uint32_t code) {
  return static_cast<int>(code >> (2 * kTapBits));
}
CAUSALPRUNE_HOST_DEVICE inline int kernel_row_of(std::uint32_t code) {
  return static_cast<int>(code >> kTapBits) & (kMostTaps - 1);
}
CAUSALPRUNE_HOST_DEVICE inline int kernel_column_of(std::uint32_t code) {
  return static_cast<int>(code) & (kMostTaps - 1);
}

// ---- the choice ----

struct SparseLaunch {
  SparseTile tile;
  int rows_per_warp, warps;  // output channels of one warp; warps of a block
  int chunk;                 // input channels in shared memory at a time; 0: no tile has a place
  std::int64_t row_blocks;
  std::int64_t dynamic_bytes;
};

// `shared_bytes`: dynamic shared memory a block may have. Throws nothing; chunk 0 asks for the
// kernel that needs no tile.
SparseLaunch choose_sparse_launch(const ConvolutionProblem& p, std::int64_t multiprocessors,
                                  std::int64_t shared_bytes);

// Distances between rows that have kernels of their own (3x3 at strides 1 and 2); any other runs on
// the general one.
constexpr int kRowSteps[] = {10, 36};

}  // namespace causalprune::cuda
