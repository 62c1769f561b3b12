// Checks the sizes of a histogram_information on CUDA and lays out its workspace.

#include <limits>

#include "common/error.hpp"
#include "cuda/histogram_tile.cuh"

namespace causalprune::cuda {

namespace {

// From a column's codes to the next: a multiple of 16 bytes.
constexpr std::int64_t kWordsAtOnce = 4;

HistogramSide sized(const float* values, const std::int64_t (&stride)[2], std::int64_t n_rows,
                    std::int64_t n_columns) {
  HistogramSide side{};
  side.values = values;
  side.row_stride = stride[0], side.column_stride = stride[1];
  side.n_rows = n_rows, side.n_columns = n_columns;
  side.words = ceil_div(ceil_div(n_rows, kCodesInWord), kWordsAtOnce) * kWordsAtOnce;
  return side;
}

std::int64_t doubles_of(const HistogramSide& side) {
  // Three words of four bytes and a double for each column, and its codes, of which two are one.
  return checked_product(side.n_columns, 3 + side.words / 2);
}

double* place(HistogramSide& side, double* at) {
  auto* words = reinterpret_cast<unsigned*>(at);
  side.codes = words;
  words += side.n_columns * side.words;
  side.sum = reinterpret_cast<double*>(words);
  words += 2 * side.n_columns;
  side.least = words;
  side.largest = words + side.n_columns;
  side.fullest = words + 2 * side.n_columns;
  return at + doubles_of(side);
}

}  // namespace

HistogramPlan plan_histogram(const HistogramInformationProblem& p, double* workspace) {
  check_histogram(p);
  HistogramPlan plan{};
  plan.x = sized(p.x, p.x_stride, p.n_samples, p.n_x);
  plan.y = sized(p.y, p.y_stride, p.n_samples, p.n_y);
  checked_product(p.n_x, p.n_y);
  plan.workspace_doubles = doubles_of(plan.x) + doubles_of(plan.y);
  if (workspace != nullptr) place(plan.y, place(plan.x, workspace));
  return plan;
}

}  // namespace causalprune::cuda
