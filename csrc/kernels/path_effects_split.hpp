// How a path_effects problem is cut into tasks and tiles.
#pragma once

#include <cstdint>

#include "kernels/path_effects.hpp"

namespace causalprune {

inline constexpr std::int64_t kLanes = 16;

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// A 1x1 layer has no neighbours, so its rows can be laid end to end when memory has them so.
PathEffectsProblem with_rows_joined(PathEffectsProblem problem);

// How the work is cut. Every edge's sum over the images of one image chunk, and every unit's over
// the outputs of one block chunk, is added up in one order by one task; only the cut along the
// inputs may depend on the number of threads.
struct Split {
  std::int64_t inputs, outputs, blocks;  // per group; blocks of 16 outputs
  std::int64_t taps;
  bool pointwise;
  std::int64_t tile_images, tile_rows, tile_columns, tile_positions;
  std::int64_t x_rows, x_pitch;  // input region under one tile
  std::int64_t input_chunk, input_chunks, block_chunk, block_chunks;
  std::int64_t image_chunk, image_chunks;  // by shape alone; each chunk has edge sums of its own
  std::int64_t flush_images;
  std::int64_t blocks_at_once;  // output blocks whose running sums a task keeps at a time
  int tile_blocks;              // output blocks prepared together
  double dense_from;            // see path_effects_density.hpp
};

// 3x3, stride 1, dilation 1: the layers with a fast path of their own.
bool is_dense_3x3(const PathEffectsProblem& problem);

Split split_of(const PathEffectsProblem& problem, const PathKernels& kernels, std::int64_t threads);

// Room for a list of one input's positions and what list_nonzero may write behind it.
inline std::int64_t list_pitch(const Split& s) {
  return ceil_div(s.tile_positions, kLanes) * kLanes + kLanes;
}

// Of sixteen inputs: those of a task that a dense pointwise tile can take.
inline std::int64_t input_groups(const Split& s) { return ceil_div(s.input_chunk, kLanes); }

}  // namespace causalprune
