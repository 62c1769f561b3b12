// Which register tiles and blocks of channels a packed convolution is likely to be fastest with.
#pragma once

#include <vector>

#include "kernels/packed_convolution.hpp"

namespace causalprune {

const PackedConvolutionKernels& packed_kernels_of(Isa isa);

// What the kernels know by that stride: 1, 2, or 0 for any other.
int column_stride_of(std::int64_t stride);

// Whether the instruction set has the tile.
bool usable(const PackedConvolutionKernels& kernels, const PackedBlocking& blocking,
            int column_stride);

// The cheapest tiles by estimate, the best first.
std::vector<PackedBlocking> likely_tiles(const PackedConvolutionProblem& problem, int rows, Isa isa,
                                         std::size_t most);

// Blocks of channels from what fits into the first-level cache up to all at once.
std::vector<std::int64_t> likely_blocks(const PackedConvolutionProblem& problem,
                                        const PackedBlocking& tile);

}  // namespace causalprune
