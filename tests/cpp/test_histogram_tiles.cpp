// What the threads of histogram_information's CUDA kernels compute, run on the host: keys, codes,
// joint histograms a tile of rows at a time, against counts and sums in double precision.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "cuda/histogram_tile.cuh"

namespace {

using causalprune::HistogramInformationProblem;
using namespace causalprune::cuda;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_keys() {
  const float ordered[] = {-kInfinity, -3e38f, -1.0f, -1e-42f, -0.0f,
                           0.0f,       1e-42f, 1.0f,  3e38f,   kInfinity};
  bool rises = true, returns = true;
  for (std::size_t k = 0; k < std::size(ordered); ++k) {
    rises &= k == 0 || key_of(ordered[k - 1]) < key_of(ordered[k]);
    returns &= float_of(key_of(ordered[k])) == ordered[k];
  }
  check(rises && returns, "keys are ordered as the floats are");
  const float nan = std::nanf("");
  check(key_of(nan) > key_of(kInfinity) && key_of(-nan) < key_of(-kInfinity),
        "NaN lies beyond both infinities");
}

enum class Kind { normal, rectified, constant, few, tiny, broken };

// A side of drawn columns, one of each kind in turn; rows apart by more than they need.
struct Drawn {
  std::int64_t n, n_columns, stride[2];
  std::vector<float> values;

  Drawn(std::int64_t n_, std::int64_t n_columns_, bool column_major, std::mt19937& draw)
      : n(n_), n_columns(n_columns_) {
    stride[0] = column_major ? 1 : n_columns + 3;
    stride[1] = column_major ? n + 2 : 1;
    values.assign(static_cast<std::size_t>((n + 2) * (n_columns + 3)), std::nanf(""));
    std::normal_distribution<float> normal;
    for (std::int64_t row = 0; row < n; ++row) {
      for (std::int64_t column = 0; column < n_columns; ++column) {
        float& to = values[static_cast<std::size_t>(row * stride[0] + column * stride[1])];
        to = normal(draw);
        switch (static_cast<Kind>(column % 6)) {
          case Kind::normal: break;
          case Kind::rectified: to = std::max(to, 0.0f); break;
          case Kind::constant: to = 2.5f; break;
          case Kind::few: to = std::floor(to); break;
          case Kind::tiny: to *= 1e-41f; break;
          case Kind::broken: to = row == n / 2 ? kInfinity : to; break;
        }
      }
    }
  }

  float at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row * stride[0] + column * stride[1])];
  }
};

// The bin by the definition.
int bin_of(const Drawn& side, std::int64_t row, std::int64_t column, int bins) {
  double least = kInfinity, largest = -kInfinity;
  for (std::int64_t k = 0; k < side.n; ++k) {
    least = std::min<double>(least, side.at(k, column));
    largest = std::max<double>(largest, side.at(k, column));
  }
  const double scale = largest > least ? bins / (largest - least) : 0.0;
  return std::min(static_cast<int>((side.at(row, column) - least) * scale), bins - 1);
}

double definition(const std::vector<int>& a, const std::vector<int>& b) {
  std::map<std::pair<int, int>, double> joint;
  std::map<int, double> of_a, of_b;
  const auto n = static_cast<double>(a.size());
  for (std::size_t k = 0; k < a.size(); ++k) {
    joint[{a[k], b[k]}] += 1 / n;
    of_a[a[k]] += 1 / n;
    of_b[b[k]] += 1 / n;
  }
  double bits = 0.0;
  for (const auto& [cell, share] : joint) {
    bits += share * std::log2(share / (of_a[cell.first] * of_b[cell.second]));
  }
  return bits;
}

// As the kernels fill a side: ranges, codes, sums and the fullest bin.
bool fill(HistogramSide& side, const Drawn& from, int bins) {
  bool right = true;
  for (std::int64_t column = 0; column < side.n_columns; ++column) {
    side.least[column] = ~0u;
    side.largest[column] = 0;
    for (std::int64_t row = 0; row < side.n_rows; ++row) {
      const unsigned key = key_of(from.at(row, column));
      side.least[column] = std::min(side.least[column], key);
      side.largest[column] = std::max(side.largest[column], key);
    }
    const bool finite = side.range(column).finite();
    const Binning binning(side.range(column), bins);
    std::vector<unsigned> count(static_cast<std::size_t>(bins));
    unsigned* codes = side.codes + column * side.words;
    std::fill_n(codes, side.words, 0u);
    for (std::int64_t row = 0; row < side.n_rows; ++row) {
      const unsigned code = binning.code(from.at(row, column));
      right &= static_cast<int>(code) == (finite ? bin_of(from, row, column, bins) : 0);
      codes[row / kCodesInWord] |= code << 8 * (row % kCodesInWord);
      ++count[code];
    }
    side.sum[column] = 0.0;
    for (const unsigned each : count) side.sum[column] += count_term(each);
    side.fullest[column] =
        static_cast<unsigned>(std::max_element(count.begin(), count.end()) - count.begin());
  }
  return right;
}

double joint_sum(const HistogramPlan& plan, std::int64_t column_x, std::int64_t column_y, int bins,
                 int tile_rows, int threads) {
  double sum = 0.0;
  unsigned apart = 0;
  std::vector<unsigned> cells(static_cast<std::size_t>(tile_rows * bins));
  for (int first = 0; first < bins; first += tile_rows) {
    std::fill(cells.begin(), cells.end(), 0u);
    const JointTile tile{
        static_cast<unsigned>(first), static_cast<unsigned>(std::min(tile_rows, bins - first)),
        static_cast<unsigned>(bins), plan.y.fullest[column_y], plan.x.fullest[column_x]};
    for (int k = 0; k < threads; ++k) {
      apart += count_share(tile, plan.x.codes + column_x * plan.x.words,
                           plan.y.codes + column_y * plan.y.words, plan.x.n_rows, k, threads,
                           cells.data());
    }
    for (int k = 0; k < threads; ++k) {
      sum += sum_share(cells.data(), static_cast<int>(tile.rows) * bins, k, threads);
    }
  }
  return sum + count_term(apart);
}

void check_pairs(std::int64_t n, int bins, int tile_rows, int threads, std::mt19937& draw) {
  const Drawn x(n, 7, draw() % 2 == 0, draw), y(n, 6, draw() % 2 == 0, draw);
  HistogramInformationProblem p{n,
                                x.n_columns,
                                y.n_columns,
                                bins,
                                x.values.data(),
                                {x.stride[0], x.stride[1]},
                                y.values.data(),
                                {y.stride[0], y.stride[1]},
                                nullptr};
  std::vector<double> workspace(
      static_cast<std::size_t>(plan_histogram(p, nullptr).workspace_doubles));
  HistogramPlan plan = plan_histogram(p, workspace.data());
  const std::string name = std::to_string(n) + " samples, " + std::to_string(bins) + " bins, " +
                           std::to_string(tile_rows) + " rows a tile: ";
  const bool right = fill(plan.x, x, bins) & fill(plan.y, y, bins);
  check(right, name + "codes");
  double worst = 0.0;
  bool special = true;
  for (std::int64_t o = 0; o < y.n_columns; ++o) {
    for (std::int64_t i = 0; i < x.n_columns; ++i) {
      const double got =
          information_of(static_cast<double>(n), joint_sum(plan, i, o, bins, tile_rows, threads),
                         plan.x, i, plan.y, o);
      const auto is = [&](Kind kind) {
        return static_cast<Kind>(i % 6) == kind || static_cast<Kind>(o % 6) == kind;
      };
      if (is(Kind::broken)) {
        special &= std::isnan(got);
      } else if (is(Kind::constant)) {
        special &= got == 0.0;
      } else {
        std::vector<int> a, b;
        for (std::int64_t row = 0; row < n; ++row) {
          a.push_back(bin_of(x, row, i, bins));
          b.push_back(bin_of(y, row, o, bins));
        }
        worst = std::max(worst, std::abs(got - std::max(definition(a, b), 0.0)));
      }
    }
  }
  check(worst <= 1e-12, name + "off by " + std::to_string(worst * 1e12) + "e-12 bits");
  check(special, name + "NaN for columns that are not finite, 0 for constant ones");
}

void check_refused() {
  HistogramInformationProblem p{4, 2, 2, 8, nullptr, {2, 1}, nullptr, {2, 1}, nullptr};
  p.bins = 257;
  refused([&] { plan_histogram(p, nullptr); }, "bins");
  p.bins = 8;
  p.n_samples = 0;
  refused([&] { plan_histogram(p, nullptr); }, "samples");
  p.n_samples = 1000;
  p.n_x = std::int64_t{1} << 60;
  refused([&] { plan_histogram(p, nullptr); }, "64 bits");
}

}  // namespace

int main() {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 draw(seed);
  check_keys();
  check_pairs(1, 64, 64, 256, draw);
  check_pairs(3, 2, 1, 5, draw);
  check_pairs(97, 7, 3, 31, draw);
  check_pairs(333, 64, 64, 256, draw);
  check_pairs(130, 256, 128, 64, draw);
  check_pairs(130, 181, 50, 33, draw);
  check_refused();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
