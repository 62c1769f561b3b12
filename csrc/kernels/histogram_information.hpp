// Histogram information: mutual information between every pair of two sets of variables.
//
// Formula. Each column of x [N, I] and y [N, O] is cut into `bins` bins of equal width between its
// least and largest value (the largest belongs to the last bin). With c the counts of a joint
// histogram and S = sum c log2 c over its cells,
//     information[o, i] = log2 N + (S_joint - S_x - S_y) / N       bits, not below 0
// A column of one value carries none: its information is exactly 0.
//
// Cost. N increments a pair and one pass over bins^2 cells; the joint counts (8 KiB for 64 bins)
// stay in the L1 cache. Workspace: 2 bytes for every value of x and y, plus those counts for each
// thread.
//
// Accumulators. Bins are chosen in float64, counts are exact integers, sums of c log2 c float64.
// Tolerance against a float64 oracle: 1e-12 bits for N up to 10^6 (rounding of those sums).
// Limits. 2 to 256 bins, N below 2^31; inputs must be finite.
// Determinism. Every pair has one owner and one order of summation: the same bits for any number of
// threads. Thread safety: no state; concurrent calls are independent.
#pragma once

#include <cstdint>

namespace causalprune {

// Strides are in elements; information is contiguous.
struct HistogramInformationProblem {
  std::int64_t n_samples, n_x, n_y;
  int bins;
  const float* x;  // [n_samples, n_x]
  std::int64_t x_stride[2];
  const float* y;  // [n_samples, n_y]
  std::int64_t y_stride[2];
  double* information;  // [n_y, n_x]
};

// Throws std::invalid_argument for sizes and bins beyond the limits.
void check_histogram(const HistogramInformationProblem& problem);

// Fills information. `threads` is an upper bound. Throws std::invalid_argument for sizes and bins
// beyond the limits and for values that are not finite, std::bad_alloc when the workspace cannot be
// had.
void histogram_information(const HistogramInformationProblem& problem, int threads);

}  // namespace causalprune
