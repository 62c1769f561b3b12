// Convolutions in the packed layout whose taps are lists: sparse weights, channel lists, groups.
//
// Formula. out[outputs[r]] = activation(bias[r] + sum over the taps t of row r of
//     weight[t] * in[channel(t)] at (y * stride - padding + k(t) * dilation) + residual), where the
// taps of a row are its nonzero weights (one row at a time, rows_per_group == 1) or what any of
// the rows that share a list of taps has a weight for. Stride, padding, dilation,
// groups, depthwise and channel lists are nothing but other lists of byte offsets.
//
// Blocking. A register tile of TY x TX positions (x 16 lanes) stays in registers over the taps of a
// block of input channels, chosen so that the tile's inputs stay in the first-level cache while all
// rows pass over them; sums wait in the output in between. Rows of a block are ordered by their
// number of taps, which keeps the loops' exits predictable.
//
// Accumulators. float32: bias first, then taps by channel, kernel row, kernel column, whatever the
// blocking, then the residual. Tolerance against a float64 oracle: 1e-6 of bias + residual +
// sum |weight * in|, and 2e-7 for the smooth activations on top.
// Limits. A block of a layout is below 2 GiB. Non-finite values go through as far as a weight reads
// them: a weight that is not listed reads nothing.
// Determinism. The same bits for any number of threads and any blocking. Thread safety: a plan is
// constant after it is made; concurrent runs are independent.
#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/isa.hpp"
#include "kernels/packed_layout.hpp"

namespace causalprune {

enum class PackedActivation : int { none, relu, relu6, hardswish, silu, gelu };

// Throws std::invalid_argument that lists the known names.
PackedActivation packed_activation_by_name(const char* name);

struct PackedConvolutionProblem {
  PackedLayout in, out;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_height, stride_width;
  std::int64_t padding_height, padding_width;
  std::int64_t dilation_height, dilation_width;
  std::int64_t groups;
  PackedActivation activation;
  std::vector<std::int32_t> inputs, outputs;  // channels of `in` and `out`
  const float* weight;  // [outputs, inputs / groups, kernel_height, kernel_width], contiguous
  const float* bias;    // [outputs], or null
};

// Throws std::invalid_argument unless the strips of `out` read what those of `in` and their halos
// hold.
void check_geometry(const PackedConvolutionProblem& problem);

// How a convolution is run; what is zero is chosen by timing.
struct PackedBlocking {
  int rows_per_group;  // that share taps: 1, 2 or 4
  int tile_height, tile_width;
  std::int64_t block_channels;
};

// ---- what each instruction set provides ----

inline constexpr std::uint32_t kFirstSegment = 1, kLastSegment = 2;

// The taps of a group of rows in a block of input channels.
struct PackedSegment {
  std::int32_t row;  // first of the group
  std::int32_t n_taps;
  std::int64_t offset, value;  // where its lists begin
  std::uint32_t flags;
};

struct PackedTile {
  const float* in;                             // first position of the tile, channel 0
  float* out;                                  // as in
  const float* residual;                       // as out, or null
  std::int64_t in_row_bytes, in_column_bytes;  // between the positions of neighbouring outputs
  std::int64_t out_row_floats, out_channel_floats, residual_row_floats, residual_channel_floats;
  const PackedSegment *first, *last;
  const std::int32_t* offsets;   // in bytes, from `in`
  const float* values;           // [taps][rows_per_group]
  const std::int32_t* channels;  // of every row
  const float* bias;             // of every row
  bool has_end;                  // whether the next two or a residual change anything
  float least, most;             // clamps the result
  PackedActivation smooth;       // applied behind the clamp
};

using PackedTileFunction = void (*)(const PackedTile&);

struct PackedConvolutionKernels {
  // The kernel of a tile, null where this instruction set has none; column_stride 0 is any.
  PackedTileFunction (*tile)(int rows_per_group, int tile_height, int tile_width,
                             int column_stride);
  int most_vectors;  // of the largest tile
};

extern const PackedConvolutionKernels kPackedConvolutionScalar;
extern const PackedConvolutionKernels kPackedConvolutionAvx2;
extern const PackedConvolutionKernels kPackedConvolutionAvx512;
extern const PackedConvolutionKernels kPackedConvolutionNeon;

// ---- the plan ----

// All taps, in the order in which the kernels read them.
struct PackedTapLists {
  struct Part {
    std::int64_t first, last;  // segments
    int rows_per_group;
  };
  std::vector<Part> parts;  // independent of each other
  std::vector<PackedSegment> segments;
  std::vector<std::int32_t> offsets, channels;
  std::vector<float> values, bias;
  std::int64_t n_taps = 0;  // of all rows
};

class PackedConvolution {
 public:
  // Chooses what `blocking` leaves open by timing on one block of the layout. `threads` tells into
  // how many independent parts the rows are divided. Throws std::invalid_argument for sizes that do
  // not fit together, std::bad_alloc.
  PackedConvolution(const PackedConvolutionProblem& problem, const PackedBlocking& blocking,
                    Isa isa, int threads);

  // `residual` may have no data. `threads` is an upper bound.
  void run(const PackedView& in, const PackedView& out, const PackedView& residual,
           int threads) const;

  const PackedLayout& in() const { return in_; }
  const PackedLayout& out() const { return out_; }
  const PackedBlocking& blocking() const { return blocking_; }
  // Multiply-adds of one position.
  std::int64_t n_taps() const { return lists_.n_taps; }
  std::int64_t bytes() const;

 private:
  PackedBlocking timed_blocking(const PackedConvolutionProblem& problem,
                                const PackedBlocking& wanted);
  std::int64_t n_tiles() const;
  void run_tile(const PackedView& in, const PackedView& out, const PackedView& residual,
                std::int64_t block, std::int64_t tile, const PackedTapLists::Part& part) const;
  void run_block(const PackedView& in, const PackedView& out, const PackedView& residual,
                 std::int64_t block) const;

  PackedLayout in_, out_;
  std::int64_t stride_height_, stride_width_;
  PackedActivation activation_;
  Isa isa_;
  PackedBlocking blocking_{};
  PackedTapLists lists_;
};

}  // namespace causalprune
