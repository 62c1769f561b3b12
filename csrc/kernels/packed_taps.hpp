// How a convolution's weights become lists of taps, in the order in which the kernels read them.
#pragma once

#include "kernels/packed_convolution.hpp"

namespace causalprune {

// The lists of all rows, in so many parts that are independent of each other.
PackedTapLists lists_of(const PackedConvolutionProblem& problem, const PackedBlocking& blocking,
                        int most_parts);

// Into how many independent parts the rows are divided: the sums of a part wait in the second-level
// cache between blocks of channels, and every thread has several parts of a tile to take, or one
// would wait for the others.
int parts_of(const PackedConvolutionProblem& problem, const PackedBlocking& blocking,
             std::int64_t tiles, int threads);

}  // namespace causalprune
