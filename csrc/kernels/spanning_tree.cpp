// Lays the samples out by column, makes the distances that pairs share, and grows the trees.

#include "kernels/spanning_tree.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

constexpr float kLargest = 1e12f;
// As bits of a distance: beyond every finite one.
constexpr std::int32_t kUnreached = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostVertices = std::int64_t{1} << 24;

const TreeKernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kTreeKernelsAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kTreeKernelsAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kTreeKernelsNeon;
#endif
    default: return kTreeKernelsScalar;
  }
}

std::int64_t padded(std::int64_t n) { return (n + kTreeLanes - 1) / kTreeLanes * kTreeLanes; }

// Columns [n_columns, pitch] of rows [first, first + n), the rest of the pitch at `filling`.
struct Columns {
  AlignedArray<float> value;
  std::int64_t pitch;

  float* column(std::int64_t at) const { return value.get() + at * pitch; }
};

Columns by_column(const char* name, const float* from, const std::int64_t (&stride)[2],
                  std::int64_t first, std::int64_t n, std::int64_t n_columns, float filling) {
  Columns columns{nullptr, padded(n)};
  columns.value = aligned_array<float>(checked_product(columns.pitch, n_columns));
  for (std::int64_t c = 0; c < n_columns; ++c) {
    float* column = columns.column(c);
    for (std::int64_t k = 0; k < n; ++k) {
      const float value = from[(first + k) * stride[0] + c * stride[1]];
      if (!(std::abs(value) <= kLargest)) {
        fail(name, ": expected finite values of at most ", kLargest, ", got ", value, " at [",
             first + k, ", ", c, "]");
      }
      column[k] = value;
    }
    std::fill(column + n, column + columns.pitch, filling);
  }
  return columns;
}

// Adds the squared distances of one row to all rows, over `n_columns` columns of that pitch.
void add_distances(const TreeKernels& kernels, const float* columns, std::int64_t pitch,
                   std::int64_t n_columns, std::int64_t row, float sign, float* to) {
  for (std::int64_t c = 0; c < n_columns; ++c) {
    const float* column = columns + c * pitch;
    kernels.add_squares(column, column[row], sign, pitch, to);
  }
}

// What one thread works in.
struct TreeWorkspace {
  AlignedArray<float> base;            // [M, pitch] squared distances without those of X
  AlignedArray<float> replaced;        // [parent_block, pitch] Y of S0, and in S1 of the neighbours
  AlignedArray<float> line;            // [m padded]
  AlignedArray<float> x;               // [child_block, pitch]
  AlignedArray<std::int32_t> nearest;  // [pitch]
  AlignedArray<float> point;           // [child_block]
};

struct Trees {
  const SpanningTreeProblem& p;
  const TreeKernels& kernels;
  std::int64_t m, pitch;       // samples in a part; row length of what concerns S0 and S1
  Columns children, parents;   // rows of S0 and S1
  Columns reserve;             // parents in S2
  AlignedArray<float> shared;  // [M, pitch] squared distances over all parents
  AlignedArray<float> search;  // [m, reserve.pitch] those from S1 to S2

  std::int64_t vertices() const { return 2 * m; }

  void prepare() {
    const std::int64_t n = vertices();
    shared = aligned_array<float>(checked_product(n, pitch));
    std::fill_n(shared.get(), n * pitch, 0.0f);
    search = aligned_array<float>(checked_product(m, reserve.pitch));
    std::fill_n(search.get(), m * reserve.pitch, 0.0f);
    for (std::int64_t row = 0; row < n; ++row) {
      add_distances(kernels, parents.column(0), pitch, p.n_parents, row, 1.0f,
                    shared.get() + row * pitch);
    }
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t c = 0; c < p.n_parents; ++c) {
        kernels.add_squares(reserve.column(c), parents.column(c)[m + row], 1.0f, reserve.pitch,
                            search.get() + row * reserve.pitch);
      }
    }
  }

  // Fills `replaced` and `base` for the parents [first, last).
  void replace(std::int64_t first, std::int64_t last, TreeWorkspace& w) const {
    // Without other parents every row is equally near, which differences of sums would not show.
    const bool alone = last - first == p.n_parents;
    for (std::int64_t c = first; c < last; ++c) {
      std::copy_n(parents.column(c), pitch, w.replaced.get() + (c - first) * pitch);
    }
    for (std::int64_t row = 0; row < m; ++row) {
      const std::int64_t neighbour =
          alone ? row : nearest_in_reserve(first, last, row, w.line.get());
      for (std::int64_t c = first; c < last; ++c) {
        w.replaced[(c - first) * pitch + m + row] = reserve.column(c)[neighbour];
      }
    }
    for (std::int64_t row = 0; row < vertices(); ++row) {
      float* to = w.base.get() + row * pitch;
      if (alone) {
        std::fill_n(to, pitch, 0.0f);
      } else {
        std::copy_n(shared.get() + row * pitch, pitch, to);
        add_distances(kernels, parents.column(first), pitch, last - first, row, -1.0f, to);
        // What is left is a sum of squares: below zero there is rounding alone.
        for (std::int64_t k = 0; k < pitch; ++k) to[k] = std::max(to[k], 0.0f);
      }
      add_distances(kernels, w.replaced.get(), pitch, last - first, row, 1.0f, to);
    }
  }

  std::int64_t nearest_in_reserve(std::int64_t first, std::int64_t last, std::int64_t row,
                                  float* line) const {
    std::copy_n(search.get() + row * reserve.pitch, reserve.pitch, line);
    for (std::int64_t c = first; c < last; ++c) {
      kernels.add_squares(reserve.column(c), parents.column(c)[m + row], -1.0f, reserve.pitch,
                          line);
    }
    std::int64_t best = row;
    const auto look = [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t k = from; k < to; ++k) {
        if (std::max(line[k], 0.0f) < std::max(line[best], 0.0f)) best = k;
      }
    };
    look(row, m);
    look(0, row);
    return best;
  }

  std::int64_t count_crossings(std::int64_t first, std::int64_t last, TreeWorkspace& w) const {
    const std::int64_t dimensions = last - first;
    for (std::int64_t c = first; c < last; ++c) {
      std::copy_n(children.column(c), pitch, w.x.get() + (c - first) * pitch);
    }
    std::fill_n(w.nearest.get(), pitch, kUnreached);
    TreeStep step{nullptr, w.x.get(), pitch, dimensions, w.point.get(), false, w.nearest.get()};
    std::int64_t vertex = 0, crossings = 0;
    for (std::int64_t edge = 1; edge < vertices(); ++edge) {
      step.row = w.base.get() + vertex * pitch;
      step.second_side = vertex >= m;
      for (std::int64_t d = 0; d < dimensions; ++d) w.point[d] = w.x[d * pitch + vertex];
      w.x[vertex] = kTreeFar;
      w.nearest[vertex] = kUnreached;
      const TreeNearest next = kernels.step(step);
      crossings += next.second_side != (next.index >= m);
      vertex = next.index;
    }
    return crossings;
  }
};

void check(const SpanningTreeProblem& p) {
  if (p.n_samples < 6) fail("children: expected at least 6 samples, got ", p.n_samples);
  if (p.n_samples / 3 * 2 >= kMostVertices) {
    fail("children: expected fewer than 2^23 samples, got ", p.n_samples);
  }
  if (p.child_block < 1) fail("child_block: expected at least 1, got ", p.child_block);
  if (p.parent_block < 1) fail("parent_block: expected at least 1, got ", p.parent_block);
}

}  // namespace

void spanning_tree_crossings(const SpanningTreeProblem& p, Isa isa, int threads) {
  check(p);
  if (p.n_children == 0 || p.n_parents == 0) return;
  const std::int64_t m = p.n_samples / 3, n = 2 * m, pitch = padded(n);
  Trees trees{p,
              kernels_of(isa),
              m,
              pitch,
              by_column("children", p.children, p.children_stride, 0, n, p.n_children, kTreeFar),
              by_column("parents", p.parents, p.parents_stride, 0, n, p.n_parents, 0.0f),
              by_column("parents", p.parents, p.parents_stride, n, m, p.n_parents, 0.0f),
              nullptr,
              nullptr};
  trees.prepare();
  const std::int64_t child_blocks = (p.n_children - 1) / p.child_block + 1;
  const std::int64_t parent_blocks = (p.n_parents - 1) / p.parent_block + 1;
  const std::int64_t child_width = std::min(p.child_block, p.n_children);
  const std::int64_t parent_width = std::min(p.parent_block, p.n_parents);
  const int workers =
      worker_count(threads, parent_blocks, checked_product(checked_product(n, n), parent_blocks));
  std::vector<TreeWorkspace> workspaces(static_cast<std::size_t>(workers));
  for (TreeWorkspace& w : workspaces) {
    w.base = aligned_array<float>(checked_product(n, pitch));
    w.replaced = aligned_array<float>(checked_product(parent_width, pitch));
    w.line = aligned_array<float>(trees.reserve.pitch);
    w.x = aligned_array<float>(checked_product(child_width, pitch));
    w.nearest = aligned_array<std::int32_t>(pitch);
    w.point = aligned_array<float>(child_width);
  }
  parallel_for(workers, parent_blocks, [&](int worker, std::int64_t block) {
    TreeWorkspace& w = workspaces[static_cast<std::size_t>(worker)];
    const std::int64_t first = block * p.parent_block;
    trees.replace(first, std::min(first + p.parent_block, p.n_parents), w);
    for (std::int64_t child = 0; child < child_blocks; ++child) {
      const std::int64_t begin = child * p.child_block;
      const std::int64_t end = std::min(begin + p.child_block, p.n_children);
      p.crossings[child * parent_blocks + block] =
          static_cast<double>(trees.count_crossings(begin, end, w));
    }
  });
}

}  // namespace causalprune
