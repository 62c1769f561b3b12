// Spanning trees: how well a child still knows its parent, given all the other parents.
//
// Formula (Yasaei Sekeh and Hero's geometric estimator, as MINT uses it). The rows of children
// [N, C] and parents [N, P] are samples; N = 3 m of them count, in an order that the caller has
// drawn at random: S0 = rows [0, m), S1 = [m, 2m), S2 = [2m, 3m). For a block X of children and a
// block Y of parents, Z being all other parents:
//     in S1, Y is replaced by the Y of the row's nearest neighbour in Z within S2;
//     crossings[X, Y] = edges of the Euclidean minimum spanning tree of the points (X, Y, Z) of
//                       S0 and S1 that join the two sets.
// Where X is independent of Y given Z the sets are alike and about m edges join them; the
// information is max(0, 1 - crossings / m).
//
// Method. With M = 2 m, D2(joint) = D2_X + D2_P - D2_Y + D2_Y[replaced], D2_P once for all, the
// rest of it but D2_X once for each Y; Prim's dense algorithm for each pair, M^2 steps whose
// distances are made as they are read. The side of a tree vertex rides in the lowest bit of its
// distance, so that one minimum carries both.
//
// Among equally near neighbours (duplicates; no other parents at all) the one that follows the
// row's own place in S2 cyclically is taken, so that what is replaced is a random pairing and not
// one row's Y for all.
//
// Accumulators. Squared distances in float32, one bit short; a tree edge may change places with
// another whose length is equal to about 1e-6 relative to D2_P. On samples without ties the counts
// equal those of a float64 oracle but for such pairs.
// Limits. Values finite and at most 1e12 in size (standardise first); M below 2^24. Workspace:
// about 5 m^2 floats, and 4 m^2 for each thread.
// Determinism. Every pair has one owner; ties in Prim's algorithm go to the lowest row: the same
// bits for any number of threads and any instruction set. Thread safety: no state.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace causalprune {

// Strides are in elements; crossings is contiguous.
struct SpanningTreeProblem {
  std::int64_t n_samples, n_children, n_parents;
  std::int64_t child_block, parent_block;  // columns in a block; the last one may be shorter
  const float* children;                   // [n_samples, n_children]
  std::int64_t children_stride[2];
  const float* parents;  // [n_samples, n_parents]
  std::int64_t parents_stride[2];
  double* crossings;  // [child blocks, parent blocks]
};

// Fills crossings; rows beyond 3 floor(N / 3) are left out. `threads` is an upper bound. Throws
// std::invalid_argument for fewer than 6 samples, empty blocks and values beyond the limits,
// std::bad_alloc when the workspace cannot be had.
void spanning_tree_crossings(const SpanningTreeProblem& problem, Isa isa, int threads);

// ---- what each instruction set provides ----

inline constexpr std::int64_t kTreeLanes = 64;  // rows are padded to a multiple of it
inline constexpr float kTreeFar = 1e18f;        // the place of padding and of what is in the tree

struct TreeNearest {
  std::int64_t index;
  bool second_side;  // of the tree vertex it is nearest to
};

// One step of Prim's algorithm: the vertex at `point`, whose row of the fixed part of the distances
// is `row`, has joined the tree.
struct TreeStep {
  const float* row;  // [padded]
  const float* x;    // [dimensions, padded] places of the vertices; kTreeFar for those to pass over
  std::int64_t padded;
  std::int64_t dimensions;
  const float* point;  // [dimensions]
  bool second_side;
  std::int32_t* nearest;  // [padded] bits of the squared distance to the tree, the lowest the side
};

struct TreeKernels {
  // to[k] += sign * (x[k] - at)^2, over a multiple of kTreeLanes elements
  void (*add_squares)(const float* x, float at, float sign, std::int64_t n, float* to);
  // Brings `nearest` up to date and finds the least of it, the lowest index among equals.
  TreeNearest (*step)(const TreeStep& step);
};

extern const TreeKernels kTreeKernelsScalar;
extern const TreeKernels kTreeKernelsAvx2;
extern const TreeKernels kTreeKernelsAvx512;
extern const TreeKernels kTreeKernelsNeon;

}  // namespace causalprune
