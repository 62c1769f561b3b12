// Bins the columns of both sides once, then counts every pair.

#include "kernels/histogram_information.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

// Four codes are added and taken apart as one word.
constexpr std::int64_t kCodesInWord = 4;

// The columns of one side as codes: bin * step, so that the codes of two sides add up to a cell.
struct Codes {
  AlignedArray<std::uint16_t> code;  // [n_columns, pitch]
  std::int64_t pitch = 0;
  std::vector<double> sum;             // [n_columns] sum of c log2 c over the bins
  std::vector<std::uint8_t> constant;  // [n_columns] whether there is but one value

  const std::uint16_t* column(std::int64_t at) const { return code.get() + at * pitch; }
};

// One side's values, with the range of every column.
struct Side {
  const char* name;
  const float* values;
  std::int64_t row_stride, column_stride, n, n_columns;
  std::vector<float> least, largest;

  float at(std::int64_t row, std::int64_t column) const {
    return values[row * row_stride + column * column_stride];
  }

  // Row by row, as the values mostly lie.
  void find_ranges() {
    least.assign(static_cast<std::size_t>(n_columns), std::numeric_limits<float>::infinity());
    largest.assign(static_cast<std::size_t>(n_columns), -std::numeric_limits<float>::infinity());
    float *low = least.data(), *high = largest.data();
    for (std::int64_t row = 0; row < n; ++row) {
      bool finite = true;
      for (std::int64_t column = 0; column < n_columns; ++column) {
        const float value = at(row, column);
        finite &= std::abs(value) <= std::numeric_limits<float>::max();
        low[column] = value < low[column] ? value : low[column];
        high[column] = value > high[column] ? value : high[column];
      }
      if (!finite) fail_not_finite(row);
    }
  }

  [[noreturn]] void fail_not_finite(std::int64_t row) const {
    std::int64_t column = 0;
    while (std::isfinite(at(row, column))) ++column;
    fail(name, ": expected finite values, got ", at(row, column), " at [", row, ", ", column, "]");
  }
};

void encode_run(const Side& side, std::int64_t column, std::int64_t first, std::int64_t last,
                int bins, std::uint16_t step, std::uint16_t* code) {
  const auto c = static_cast<std::size_t>(column);
  const double least = side.least[c], width = side.largest[c] - least;
  const double scale = width > 0.0 ? static_cast<double>(bins) / width : 0.0;
  for (std::int64_t row = first; row < last; ++row) {
    const int bin = static_cast<int>((static_cast<double>(side.at(row, column)) - least) * scale);
    code[row] = static_cast<std::uint16_t>((bin < bins ? bin : bins - 1) * step);
  }
}

Codes encode(Side side, int bins, std::uint16_t step, const std::vector<double>& count_log_count) {
  constexpr std::int64_t kRows = 256;  // of all columns: what a cache holds
  side.find_ranges();
  Codes codes;
  codes.pitch = (side.n + kCodesInWord - 1) / kCodesInWord * kCodesInWord;
  codes.code = aligned_array<std::uint16_t>(checked_product(codes.pitch, side.n_columns));
  for (std::int64_t first = 0; first < side.n; first += kRows) {
    for (std::int64_t column = 0; column < side.n_columns; ++column) {
      encode_run(side, column, first, std::min(first + kRows, side.n), bins, step,
                 codes.code.get() + column * codes.pitch);
    }
  }
  std::vector<std::int64_t> count(static_cast<std::size_t>(bins) * step);  // by code
  for (std::int64_t column = 0; column < side.n_columns; ++column) {
    const auto c = static_cast<std::size_t>(column);
    codes.constant.push_back(side.least[c] == side.largest[c]);
    const std::uint16_t* code = codes.column(column);
    for (std::int64_t k = 0; k < side.n; ++k) ++count[code[k]];
    double sum = 0.0;
    for (std::size_t k = 0; k < count.size(); k += step) {
      sum += count_log_count[static_cast<std::size_t>(count[k])];
      count[k] = 0;
    }
    codes.sum.push_back(sum);
  }
  return codes;
}

inline std::uint64_t word_at(const std::uint16_t* p) {
  std::uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// No sum of two codes leaves 16 bits (256 * 256 cells), so a word holds four of them side by side.
template <class Count>
void count_pairs(const std::uint16_t* a, const std::uint16_t* b, std::int64_t n, Count* count) {
  std::int64_t k = 0;
  for (; k + kCodesInWord <= n; k += kCodesInWord) {
    const std::uint64_t cells = word_at(a + k) + word_at(b + k);
    ++count[cells & 0xffff];
    ++count[cells >> 16 & 0xffff];
    ++count[cells >> 32 & 0xffff];
    ++count[cells >> 48];
  }
  for (; k < n; ++k) ++count[a[k] + b[k]];
}

// Sum of c log2 c; leaves the counts at zero. Most cells are empty and passed over by the word.
template <class Count>
double take_sum(Count* count, std::int64_t cells, const double* count_log_count) {
  constexpr std::int64_t kInWord = sizeof(std::uint64_t) / sizeof(Count);
  double sum[kInWord] = {};  // side by side: an addition waits for the one before it
  for (std::int64_t k = 0; k < cells; k += kInWord) {
    std::uint64_t word;
    std::memcpy(&word, count + k, sizeof word);
    if (word == 0) continue;
    for (std::int64_t each = 0; each < kInWord; ++each) {
      sum[each] += count_log_count[count[k + each]];
    }
    std::memset(count + k, 0, sizeof word);
  }
  double total = 0.0;
  for (const double each : sum) total += each;
  return total;
}

template <class Count>
void all_pairs(const HistogramInformationProblem& p, const Codes& x, const Codes& y,
               const std::vector<double>& count_log_count, int threads) {
  const std::int64_t cells = (static_cast<std::int64_t>(p.bins) * p.bins + 3) / 4 * 4;
  const std::int64_t work = checked_product(checked_product(p.n_x, p.n_y), p.n_samples + cells);
  const int workers = worker_count(threads, p.n_y, work);
  const AlignedArray<Count> counts = aligned_array<Count>(checked_product(workers, cells));
  std::fill_n(counts.get(), workers * cells, Count{0});
  const double n = static_cast<double>(p.n_samples);
  parallel_for(workers, p.n_y, [&](int worker, std::int64_t row) {
    Count* count = counts.get() + worker * cells;
    const auto o = static_cast<std::size_t>(row);
    for (std::int64_t column = 0; column < p.n_x; ++column) {
      const auto i = static_cast<std::size_t>(column);
      double& to = p.information[row * p.n_x + column];
      if (x.constant[i] || y.constant[o]) {
        to = 0.0;
        continue;
      }
      count_pairs(x.column(column), y.column(row), p.n_samples, count);
      const double joint = take_sum(count, cells, count_log_count.data());
      to = std::max(0.0, std::log2(n) + (joint - x.sum[i] - y.sum[o]) / n);
    }
  });
}

}  // namespace

void check_histogram(const HistogramInformationProblem& p) {
  if (p.bins < 2 || p.bins > 256) fail("bins: expected 2 to 256, got ", p.bins);
  if (p.n_samples < 1 || p.n_samples > std::numeric_limits<std::int32_t>::max()) {
    fail("x: expected 1 to 2^31 - 1 samples, got ", p.n_samples);
  }
}

void histogram_information(const HistogramInformationProblem& p, int threads) {
  check_histogram(p);
  if (p.n_x == 0 || p.n_y == 0) return;
  std::vector<double> count_log_count(static_cast<std::size_t>(p.n_samples) + 1, 0.0);
  for (std::size_t c = 2; c < count_log_count.size(); ++c) {
    const double count = static_cast<double>(c);
    count_log_count[c] = count * std::log2(count);
  }
  const Codes x = encode({"x", p.x, p.x_stride[0], p.x_stride[1], p.n_samples, p.n_x, {}, {}},
                         p.bins, 1, count_log_count);
  const Codes y = encode({"y", p.y, p.y_stride[0], p.y_stride[1], p.n_samples, p.n_y, {}, {}},
                         p.bins, static_cast<std::uint16_t>(p.bins), count_log_count);
  if (p.n_samples <= std::numeric_limits<std::uint16_t>::max()) {
    all_pairs<std::uint16_t>(p, x, y, count_log_count, threads);
  } else {
    all_pairs<std::uint32_t>(p, x, y, count_log_count, threads);
  }
}

}  // namespace causalprune
