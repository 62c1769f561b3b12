// Path effects: what cutting each edge (input channel i -> output channel j) of a layer does.
//
// Formula. With c_ji[n,p] = (weight[j,i] * x[n,i])[p] the contribution of input channel i to output
// channel j, and phi the activation,
//     d_ji[n,p]  = phi(pre[n,j,p] - c_ji[n,p]) - phi(pre[n,j,p])
//     edge[j,i]  = (sum d, sum |d|, sum d^2, sum grad[n,j,p] d)   over images n and positions p
//     unit[n,i]  = sum over j and p of grad[n,j,p] d_ji[n,p]      (grad = 1 where there is none)
// For ReLU, d = max(min(pre, 0) - c, -relu(pre)): both terms are known before the loop over i.
//
// Layout. The sixteen lanes are output channels, the input value is a broadcast scalar. So any
// batch size, kernel size, stride and dilation runs on the same loop, per-edge sums need no
// reduction across lanes, and in 1x1 and linear layers an input that is exactly zero (half of them
// behind a ReLU) is skipped: its d is zero for every output. Where a group of sixteen inputs has
// few zeros, several inputs share what a position loads instead. 3x3 layers of stride 1 take two
// blocks of outputs at a time, which share the input's broadcasts.
//
// Accumulators. float32 inside a tile and over at most kFlushPositions positions, then float64.
// Tolerance against a float64 oracle: 1e-5 of the edge's own sum of |d| (of |grad d|, of d^2) plus
// 1e-6 of the layer's largest. The second part is float32 cancellation in phi(pre - c) - phi(pre),
// which an edge of nearly no weight cannot escape under a smooth phi; under ReLU it hardly shows.
//
// Limits. Sizes are int64 and checked; inputs must be finite. Never materialises [N, O, I, P]:
// workspace is bounded by the tile and the running sums of one task, under 2 MiB a thread, plus a
// copy of the weight and, for small layers, edge sums of four parts of the images, at most 4 MiB.
//
// Determinism. Work is split by shape alone, but for the inputs, whose sums are their own; parts
// are put together in one order: the same bits for any number of threads. Thread safety: of what is
// kept between calls, a share of zeros that is timed once, no result depends on; concurrent calls
// are independent.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.hpp"

namespace causalprune {

enum class Activation : int { identity, relu, gelu, silu, hardswish };

// Throws std::invalid_argument that lists the known names.
Activation activation_by_name(const char* name);

// Whether an effect costs next to nothing beside its multiplications.
inline bool is_piecewise_linear(Activation activation) {
  return activation == Activation::identity || activation == Activation::relu;
}

inline constexpr int kEdgeStatistics = 4;

// Strides are in elements; weight, edge and unit are contiguous. grad may be null.
struct PathEffectsProblem {
  std::int64_t n_images, n_inputs, height, width;
  std::int64_t n_outputs, out_height, out_width;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_height, stride_width;
  std::int64_t padding_height, padding_width;
  std::int64_t dilation_height, dilation_width;
  std::int64_t groups;
  Activation activation;
  const float* x;
  std::int64_t x_stride[4];
  const float* weight;  // [n_outputs, n_inputs / groups, kernel_height, kernel_width]
  const float* pre;
  std::int64_t pre_stride[4];
  const float* grad;
  std::int64_t grad_stride[4];
  double* edge;  // [n_outputs, n_inputs / groups, n_statistics]
  double* unit;  // [n_images, n_inputs]
  // kEdgeStatistics, or 1: of an edge the last alone, sum grad d, which is all that scores read.
  std::int64_t n_statistics = kEdgeStatistics;
};

// Throws std::invalid_argument for sizes that do not fit together.
void check_path_geometry(const PathEffectsProblem& problem);

// Fills edge and unit. `threads` is an upper bound; small problems run on the calling thread, as
// does everything inside an OpenMP parallel region. Throws std::invalid_argument for sizes that do
// not fit together and for non-finite input, std::bad_alloc when the workspace cannot be had.
void path_effects(const PathEffectsProblem& problem, Isa isa, int threads);

// ---- what each instruction set provides ----

// One tile: a block of output positions and one block of 16 output channels, prepared.
struct PathTile {
  std::int64_t n_positions;
  const float* start;      // [n_positions, blocks, 16] what c is taken from
  const float* after;      // [n_positions, blocks, 16] what d is taken from
  const float* weighting;  // [n_positions, blocks, 16] grad, or null
  bool all_statistics;
};

// Inputs seen through a kernel of several taps.
struct PathTapsJob {
  PathTile tile;
  std::int64_t blocks;               // output blocks in the tile: 1, or kTapBlocks if dense_3x3
  std::int64_t rows, columns;        // tile positions = rows * columns
  const float* x;                    // [n_inputs, x_rows, x_pitch]
  std::int64_t x_plane, x_row_step;  // elements to the next channel, to the next output row
  std::int64_t x_column_step;        // elements to the next output column
  std::int64_t n_inputs, n_taps;
  const std::int64_t* tap_offset;                 // [n_taps] elements from the first tap
  bool dense_3x3;                                 // 3x3, stride 1, dilation 1: the fast path
  std::int64_t zero_rows_above, zero_rows_below;  // of x, padding under this tile
  std::int64_t x_pitch;
  const float* weight;  // [blocks, weight_block] of [n_inputs, n_taps, 16]
  std::int64_t weight_block;
  float* partial;  // [blocks, n_inputs, statistics, 16], added to
  float* unit;     // [n_inputs, 16], added to
};

// Inputs of a 1x1 kernel: lists of what is not zero and, for groups of sixteen inputs with few
// zeros, all values. Both ways give the same bits: what is zero changes nothing.
struct PathPointwiseJob {
  PathTile tile;
  std::int64_t blocks;           // output blocks in the tile: 1 or kPointwiseBlocks
  std::int64_t image_positions;  // positions of one image, which follow each other
  std::int64_t n_inputs, list_pitch;
  const std::int32_t* position;          // [n_inputs, list_pitch]
  const float* value;                    // [n_inputs, list_pitch]
  const std::int32_t* count;             // [n_inputs]
  const std::uint8_t* negative;          // [groups of 16] whether any value is below zero
  const std::uint8_t* dense_group_used;  // [groups of 16] whether it is in `dense`
  const float* dense;                    // [groups of 16, dense_group] of [n_positions, 16]
  std::int64_t dense_group;
  const float* weight;  // [blocks, weight_block] of [n_inputs, 16]
  std::int64_t weight_block;
  float* partial;          // [blocks, n_inputs, statistics, 16], added to
  std::int64_t unit_slot;  // elements from one image's unit to the next
  float* unit;             // [images, n_inputs, 16], added to
};

// Appends what is not zero in a run of n inputs of every channel to that channel's list.
struct PathListJob {
  std::int64_t n_inputs;
  const float* x;  // [n_inputs] runs, x_plane apart
  std::int64_t x_plane;
  std::int32_t n, first_position;
  std::int64_t list_pitch;  // room for every position of a tile and 16 more
  std::int32_t* position;   // [n_inputs, list_pitch]
  float* value;             // [n_inputs, list_pitch]
  std::int32_t* count;      // [n_inputs], added to
  std::uint8_t* negative;   // [groups of 16 inputs], set where a value is below zero
};

struct PathKernels {
  int pointwise_blocks, tap_blocks;  // output blocks of a tile
  // Sixteen channels of pre, grad or weight (missing ones zero), [lanes, n] to [n, to_step]. Tells
  // whether all values were finite.
  bool (*gather)(const float* from, std::int64_t channel_step, int lanes, std::int64_t n, float* to,
                 std::int64_t to_step);
  // Copies n values; tells whether all were finite.
  bool (*copy_row)(const float* from, std::int64_t n, float* to);
  // Tells whether all inputs were finite.
  bool (*list_nonzero)(const PathListJob& job);
  // From pre (and grad) to start and after, sixteen channels at a time, in place.
  void (*prepare)(Activation activation, std::int64_t n_positions, float* start, float* after);
  void (*taps)(Activation activation, const PathTapsJob& job);
  void (*pointwise)(Activation activation, const PathPointwiseJob& job);
};

extern const PathKernels kPathKernelsScalar;
extern const PathKernels kPathKernelsAvx2;
extern const PathKernels kPathKernelsAvx512;
extern const PathKernels kPathKernelsNeon;

// Those of an instruction set that this library holds.
const PathKernels& path_kernels(Isa isa);

}  // namespace causalprune
