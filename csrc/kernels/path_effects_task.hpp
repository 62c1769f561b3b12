// One task of path_effects: some inputs, some output blocks, all images. Brings tiles into the
// lanes layout and hands them to the instruction set's kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned_array.hpp"
#include "kernels/path_effects_split.hpp"

namespace causalprune {

// Whether all of n values are finite.
bool all_finite(const float* data, std::int64_t n, std::int64_t step);

struct Workspace {
  AlignedArray<float> x, start, after, weighting, value, dense, partial, unit;
  AlignedArray<std::int32_t> position, count;
  AlignedArray<std::uint8_t> negative, dense_group_used;
  std::vector<std::int64_t> tap_offset;

  Workspace(const Split& s, const PathEffectsProblem& p)
      : x(aligned_array<float>(
            checked_product(checked_product(s.input_chunk * s.tile_images, s.x_rows), s.x_pitch))),
        start(aligned_array<float>(s.tile_positions * s.tile_blocks * kLanes)),
        after(aligned_array<float>(s.tile_positions * s.tile_blocks * kLanes)),
        weighting(aligned_array<float>(s.tile_positions * s.tile_blocks * kLanes)),
        value(aligned_array<float>(s.input_chunk * list_pitch(s))),
        dense(aligned_array<float>(input_groups(s) * s.tile_positions * kLanes)),
        partial(aligned_array<float>(
            checked_product(s.blocks_at_once * s.input_chunk, kEdgeStatistics * kLanes))),
        unit(aligned_array<float>(s.tile_images * s.input_chunk * kLanes)),
        position(aligned_array<std::int32_t>(s.input_chunk * list_pitch(s))),
        count(aligned_array<std::int32_t>(s.input_chunk)),
        negative(aligned_array<std::uint8_t>(input_groups(s))),
        dense_group_used(aligned_array<std::uint8_t>(input_groups(s))) {
    for (std::int64_t ky = 0; ky < p.kernel_height; ++ky) {
      for (std::int64_t kx = 0; kx < p.kernel_width; ++kx) {
        tap_offset.push_back(ky * p.dilation_height * s.x_pitch + kx * p.dilation_width);
      }
    }
  }
};

class Task {
 public:
  Task(const PathEffectsProblem& problem, const Split& split, const PathKernels& kernels,
       const float* packed_weight, double* edge_partial, double* unit_partial, Workspace& workspace)
      : p(problem),
        s(split),
        kernels(kernels),
        packed_weight(packed_weight),
        edge_partial(edge_partial),
        unit_partial(unit_partial),
        w(workspace) {}

  // Tells whether everything read was finite.
  bool run(std::int64_t index);

 private:
  const PathEffectsProblem& p;
  const Split& s;
  const PathKernels& kernels;
  const float* packed_weight;
  double* edge_partial;  // [image_chunks] of edge
  double* unit_partial;  // [block_chunks] of unit
  Workspace& w;
  std::int64_t group = 0, block_part = 0, first_input = 0, n_inputs = 0;
  std::int64_t image_part = 0;
  bool finite = true;

  void run_blocks(std::int64_t begin, std::int64_t end);
  void run_tile(std::int64_t n, std::int64_t images, std::int64_t row, std::int64_t column,
                std::int64_t begin, std::int64_t end);
  const float* weight_of(std::int64_t block) const;
  void run_taps(const PathTile& tile, std::int64_t block, std::int64_t blocks, std::int64_t row,
                std::int64_t rows, std::int64_t columns, float* partial);
  void run_pointwise(const PathTile& tile, std::int64_t images, std::int64_t block,
                     std::int64_t blocks, float* partial);
  // The input under the tile, zero where the padding is: [n_inputs, images, x_rows, x_pitch].
  void copy_inputs(std::int64_t n, std::int64_t images, std::int64_t row, std::int64_t column,
                   std::int64_t rows, std::int64_t columns);
  // For each input the positions of the tile where it is not zero. `source` is the input under the
  // tile where it can be read in place, else null: it was copied.
  void list_nonzero(std::int64_t images, std::int64_t rows, std::int64_t columns,
                    const float* source);
  // Groups of sixteen inputs with few zeros, transposed to [positions, 16].
  void pack_dense(std::int64_t images, std::int64_t rows, std::int64_t columns,
                  const float* source);
  // Sixteen output channels of pre or grad, transposed to [positions, blocks, 16].
  void gather_block(const float* data, const std::int64_t (&stride)[4], float* target,
                    std::int64_t block, std::int64_t k, std::int64_t blocks, std::int64_t n,
                    std::int64_t images, std::int64_t row, std::int64_t column, std::int64_t rows,
                    std::int64_t columns);
  void flush_unit(std::int64_t n, std::int64_t images);
  void flush_edges(std::int64_t begin, std::int64_t end);
};

}  // namespace causalprune
