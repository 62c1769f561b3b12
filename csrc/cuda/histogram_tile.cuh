// What the threads of histogram_information's kernels compute, and where its workspace lies. Plain
// arithmetic that a host compiler takes too.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/convolution_positions.cuh"
#include "kernels/histogram_information.hpp"

namespace causalprune::cuda {

constexpr int kMostBins = 256;
constexpr int kCodesInWord = 4;

inline CAUSALPRUNE_HOST_DEVICE void add_one(unsigned* counter) {
#if defined(__CUDA_ARCH__)
  atomicAdd(counter, 1u);
#else
  ++*counter;
#endif
}

// ---- the range of a column ----

// Floats in their order as unsigned integers, NaN beyond both infinities.
CAUSALPRUNE_HOST_DEVICE inline unsigned key_of(float v) {
  unsigned bits;
  memcpy(&bits, &v, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
CAUSALPRUNE_HOST_DEVICE inline float float_of(unsigned key) {
  const unsigned bits = key >> 31 ? key & 0x7fffffffu : ~key;
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

struct ColumnRange {
  float least, largest;

  CAUSALPRUNE_HOST_DEVICE bool finite() const { return least > -INFINITY && largest < INFINITY; }
  CAUSALPRUNE_HOST_DEVICE bool constant() const { return least == largest; }
};

// ---- codes ----

// From a value of a finite column to its bin, as on the CPU.
struct Binning {
  double least, scale;
  int bins;

  CAUSALPRUNE_HOST_DEVICE Binning(const ColumnRange& range, int bins) : least(0.0), scale(0.0) {
    this->bins = bins;
    if (!range.finite()) return;  // everything into the first bin
    least = range.least;
    const double width = range.largest - least;
    scale = width > 0.0 ? static_cast<double>(bins) / width : 0.0;
  }

  CAUSALPRUNE_HOST_DEVICE unsigned code(float value) const {
    if (scale == 0.0) return 0;
    const auto bin = static_cast<int>((static_cast<double>(value) - least) * scale);
    return static_cast<unsigned>(bin < bins ? bin : bins - 1);
  }
};

// The columns of one side, and what is known of each.
struct HistogramSide {
  const float* values;
  std::int64_t row_stride, column_stride, n_rows, n_columns;
  unsigned *least, *largest;  // [n_columns] keys
  double* sum;                // [n_columns] of c log2 c over the bins
  unsigned* fullest;          // [n_columns] the bin of most samples
  unsigned* codes;            // [n_columns, words] four to a word, zero beyond the last
  std::int64_t words;

  CAUSALPRUNE_HOST_DEVICE ColumnRange range(std::int64_t column) const {
    return {float_of(least[column]), float_of(largest[column])};
  }
};

struct HistogramPlan {
  HistogramSide x, y;
  std::int64_t workspace_doubles;
};

// Throws std::invalid_argument for sizes and bins beyond the limits. `workspace` may be null to
// learn its size.
HistogramPlan plan_histogram(const HistogramInformationProblem& problem, double* workspace);

// ---- counting ----

CAUSALPRUNE_HOST_DEVICE inline double count_term(unsigned count) {
  return count < 2 ? 0.0 : count * log2(static_cast<double>(count));
}

// The rows [first, first + rows) of a pair's joint histogram: bins of y by bins of x.
struct JointTile {
  unsigned first, rows, bins;
  unsigned fullest_y, fullest_x;
};

// Takes every `threads`-th word of a pair's codes. The cell in which both columns have most of
// their samples is counted apart and returned: in memory all threads would wait for one another.
CAUSALPRUNE_HOST_DEVICE inline unsigned count_share(const JointTile& t, const unsigned* x,
                                                    const unsigned* y, std::int64_t n, int thread,
                                                    int threads, unsigned* cells) {
  const unsigned apart = t.fullest_y * t.bins + t.fullest_x;
  const std::int64_t words = n / kCodesInWord + (n % kCodesInWord != 0);
  unsigned found_apart = 0;
  for (std::int64_t k = thread; k < words; k += threads) {
    const unsigned of_x = x[k], of_y = y[k];
    const std::int64_t left = n - k * kCodesInWord;
    CAUSALPRUNE_DEVICE_UNROLL
    for (int each = 0; each < kCodesInWord; ++each) {
      const unsigned row = of_y >> 8 * each & 0xffu, column = of_x >> 8 * each & 0xffu;
      const unsigned within = row - t.first;  // far above every row where it is below the first
      if (each >= left || within >= t.rows) continue;
      if (row * t.bins + column == apart) {
        ++found_apart;
      } else {
        add_one(cells + within * t.bins + column);
      }
    }
  }
  return found_apart;
}

// The sum of c log2 c over every `threads`-th cell.
CAUSALPRUNE_HOST_DEVICE inline double sum_share(const unsigned* cells, int n_cells, int thread,
                                                int threads) {
  double sum = 0.0;
  for (int k = thread; k < n_cells; k += threads) sum += count_term(cells[k]);
  return sum;
}

// Bits, from the sums of c log2 c of the joint histogram and of both columns.
CAUSALPRUNE_HOST_DEVICE inline double information_of(double n, double joint, const HistogramSide& x,
                                                     std::int64_t column_x, const HistogramSide& y,
                                                     std::int64_t column_y) {
  const ColumnRange range_x = x.range(column_x), range_y = y.range(column_y);
  if (!range_x.finite() || !range_y.finite()) return NAN;
  if (range_x.constant() || range_y.constant()) return 0.0;
  const double bits = log2(n) + (joint - x.sum[column_x] - y.sum[column_y]) / n;
  return bits > 0.0 ? bits : 0.0;
}

}  // namespace causalprune::cuda
