// histogram_information and spanning_tree_crossings against brute-force oracles in double
// precision. No framework: one line for each check; the exit status tells whether all held.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/histogram_information.hpp"
#include "kernels/spanning_tree.hpp"

namespace {

using causalprune::Isa;

int passed = 0, failed = 0;

void check(bool holds, const std::string& what) {
  std::printf("%s  %s\n", holds ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  ++(holds ? passed : failed);
}

void check_refused(const std::string& what, const std::vector<std::string>& words,
                   const std::function<void()>& run) {
  try {
    run();
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    const bool all = std::all_of(words.begin(), words.end(), [&](const std::string& word) {
      return message.find(word) != std::string::npos;
    });
    check(all, what + ": " + message);
    return;
  }
  check(false, what + ": not refused");
}

// Samples in rows; each row followed by some padding, so that strides matter.
struct Samples {
  std::int64_t rows, columns, pitch;
  std::vector<float> value;

  Samples(std::int64_t n, std::int64_t c, std::int64_t padding = 3)
      : rows(n), columns(c), pitch(c + padding), value(static_cast<std::size_t>(n * pitch), NAN) {}

  float& at(std::int64_t row, std::int64_t column) {
    return value[static_cast<std::size_t>(row * pitch + column)];
  }
  double get(std::int64_t row, std::int64_t column) const {
    return value[static_cast<std::size_t>(row * pitch + column)];
  }
};

Samples normal(std::int64_t n, std::int64_t columns, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw;
  Samples samples(n, columns);
  for (std::int64_t row = 0; row < n; ++row) {
    for (std::int64_t c = 0; c < columns; ++c) samples.at(row, c) = draw(engine);
  }
  return samples;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// ---- histogram_information --------------------------------------------------------------------

std::vector<double> histogram(const Samples& x, const Samples& y, int bins, int threads) {
  std::vector<double> information(static_cast<std::size_t>(x.columns * y.columns), -1.0);
  causalprune::histogram_information({x.rows,
                                      x.columns,
                                      y.columns,
                                      bins,
                                      x.value.data(),
                                      {x.pitch, 1},
                                      y.value.data(),
                                      {y.pitch, 1},
                                      information.data()},
                                     threads);
  return information;
}

std::vector<int> bins_of(const Samples& s, std::int64_t column, int bins) {
  double least = s.get(0, column), largest = least;
  for (std::int64_t k = 1; k < s.rows; ++k) {
    least = std::min(least, s.get(k, column));
    largest = std::max(largest, s.get(k, column));
  }
  std::vector<int> found(static_cast<std::size_t>(s.rows), 0);
  for (std::int64_t k = 0; k < s.rows && largest > least; ++k) {
    const double place = (s.get(k, column) - least) * (bins / (largest - least));
    found[static_cast<std::size_t>(k)] = std::min(bins - 1, static_cast<int>(place));
  }
  return found;
}

// Sum over cells of p log2(p / (q r)).
double information_of(const Samples& x, std::int64_t i, const Samples& y, std::int64_t o,
                      int bins) {
  const std::vector<int> x_bins = bins_of(x, i, bins), y_bins = bins_of(y, o, bins);
  std::map<std::pair<int, int>, double> joint;
  std::map<int, double> first, second;
  for (std::int64_t k = 0; k < x.rows; ++k) {
    const int a = x_bins[static_cast<std::size_t>(k)], b = y_bins[static_cast<std::size_t>(k)];
    joint[{a, b}] += 1.0 / static_cast<double>(x.rows);
    first[a] += 1.0 / static_cast<double>(x.rows);
    second[b] += 1.0 / static_cast<double>(x.rows);
  }
  double sum = 0.0;
  for (const auto& [cell, p] : joint) {
    sum += p * std::log2(p / (first[cell.first] * second[cell.second]));
  }
  return sum;
}

void check_histograms() {
  for (const auto& [n, n_x, n_y, bins] : {std::tuple<int, int, int, int>{1, 2, 3, 64},
                                          {2, 1, 1, 2},
                                          {97, 3, 5, 7},
                                          {1000, 4, 3, 64},
                                          {1001, 2, 2, 256},
                                          {70001, 1, 2, 33}}) {
    const Samples x = normal(n, n_x, 1);
    Samples y = normal(n, n_y, 2);
    for (std::int64_t k = 0; k < n; ++k) y.at(k, 0) += static_cast<float>(x.get(k, 0));
    const std::vector<double> got = histogram(x, y, bins, 1);
    double worst = 0.0;
    for (std::int64_t o = 0; o < n_y; ++o) {
      for (std::int64_t i = 0; i < n_x; ++i) {
        const double want = std::max(0.0, information_of(x, i, y, o, bins));
        worst = std::max(worst, std::abs(got[static_cast<std::size_t>(o * n_x + i)] - want));
      }
    }
    check(worst < 1e-10, "histogram of " + std::to_string(n) + " samples, " + std::to_string(bins) +
                             " bins: off by " + std::to_string(worst * 1e12) + "e-12");
  }
  Samples x = normal(500, 3, 3);
  for (std::int64_t k = 0; k < 500; ++k) x.at(k, 1) = 4.25f;
  const std::vector<double> own = histogram(x, x, 64, 1);
  check(own[1] == 0.0 && own[3] == 0.0 && own[4] == 0.0, "a constant carries nothing");
  check(std::abs(own[0] - information_of(x, 0, x, 0, 64)) < 1e-12 && own[0] > 4.0,
        "a variable knows its own entropy");
  const Samples many = normal(400, 40, 4), more = normal(400, 70, 5);
  for (const int threads : {2, 5}) {
    check(same_bits(histogram(many, more, 64, 1), histogram(many, more, 64, threads)),
          "histogram: same bits on " + std::to_string(threads) + " threads");
  }
  check_refused("bins", {"bins", "2 to 256", "257"}, [&] { histogram(x, x, 257, 1); });
  check_refused("no samples", {"x", "0"}, [] { histogram(Samples(0, 1), Samples(0, 1), 4, 1); });
  Samples broken = normal(5, 2, 6);
  broken.at(3, 1) = std::numeric_limits<float>::infinity();
  check_refused("infinity", {"y", "inf", "[3, 1]"},
                [&] { histogram(normal(5, 1, 7), broken, 4, 1); });
}

// ---- spanning trees ---------------------------------------------------------------------------

struct Blocks {
  std::int64_t child = 1, parent = 1;
};

std::vector<double> crossings(const Samples& children, const Samples& parents, Blocks blocks,
                              Isa isa, int threads) {
  const std::int64_t rows = (children.columns - 1) / blocks.child + 1;
  const std::int64_t columns = (parents.columns - 1) / blocks.parent + 1;
  std::vector<double> found(static_cast<std::size_t>(rows * columns), -1.0);
  causalprune::spanning_tree_crossings({children.rows,
                                        children.columns,
                                        parents.columns,
                                        blocks.child,
                                        blocks.parent,
                                        children.value.data(),
                                        {children.pitch, 1},
                                        parents.value.data(),
                                        {parents.pitch, 1},
                                        found.data()},
                                       isa, threads);
  return found;
}

// One pair of blocks by Kruskal's algorithm over all distances.
double crossings_of(const Samples& children, std::int64_t c0, std::int64_t c1,
                    const Samples& parents, std::int64_t p0, std::int64_t p1) {
  const std::int64_t m = children.rows / 3, n = 2 * m;
  std::vector<std::vector<double>> point(static_cast<std::size_t>(n));
  for (std::int64_t row = 0; row < n; ++row) {
    std::int64_t source = row;
    if (row >= m) {
      double least = std::numeric_limits<double>::infinity();
      for (std::int64_t step = 0; step < m; ++step) {
        const std::int64_t other = 2 * m + (row - m + step) % m;
        double distance = 0.0;
        for (std::int64_t p = 0; p < parents.columns; ++p) {
          if (p >= p0 && p < p1) continue;
          distance += std::pow(parents.get(row, p) - parents.get(other, p), 2);
        }
        if (distance < least) {
          least = distance;
          source = other;
        }
      }
    }
    for (std::int64_t c = c0; c < c1; ++c) point[row].push_back(children.get(row, c));
    for (std::int64_t p = 0; p < parents.columns; ++p) {
      point[row].push_back(parents.get(p >= p0 && p < p1 ? source : row, p));
    }
  }
  std::vector<std::tuple<double, std::int64_t, std::int64_t>> edges;
  for (std::int64_t a = 0; a < n; ++a) {
    for (std::int64_t b = a + 1; b < n; ++b) {
      double distance = 0.0;
      for (std::size_t d = 0; d < point[a].size(); ++d) {
        distance += std::pow(point[a][d] - point[b][d], 2);
      }
      edges.emplace_back(distance, a, b);
    }
  }
  std::sort(edges.begin(), edges.end());
  std::vector<std::int64_t> root(static_cast<std::size_t>(n));
  std::iota(root.begin(), root.end(), 0);
  const std::function<std::int64_t(std::int64_t)> find = [&](std::int64_t v) {
    return root[v] == v ? v : root[v] = find(root[v]);
  };
  double joining = 0.0;
  for (const auto& [distance, a, b] : edges) {
    if (find(a) == find(b)) continue;
    root[find(a)] = find(b);
    joining += (a < m) != (b < m);
  }
  return joining;
}

void check_trees() {
  const struct {
    std::int64_t n, children, parents;
    Blocks blocks;
  } cases[] = {{6, 1, 1, {}},        {7, 2, 3, {}},        {46, 3, 2, {}},
               {99, 2, 4, {}},       {101, 5, 7, {2, 3}},  {150, 4, 4, {4, 4}},
               {200, 3, 17, {2, 1}}, {145, 9, 5, {16, 16}}};
  unsigned seed = 10;
  for (const auto& one : cases) {
    const Samples parents = normal(one.n, one.parents, seed++);
    Samples children = normal(one.n, one.children, seed++);
    for (std::int64_t k = 0; k < one.n; ++k) {
      children.at(k, 0) += 2.0f * static_cast<float>(parents.get(k, 0));
    }
    const std::int64_t columns = (one.parents - 1) / one.blocks.parent + 1;
    std::vector<double> want;
    for (std::int64_t c = 0; c < one.children; c += one.blocks.child) {
      for (std::int64_t p = 0; p < one.parents; p += one.blocks.parent) {
        want.push_back(crossings_of(children, c, std::min(c + one.blocks.child, one.children),
                                    parents, p, std::min(p + one.blocks.parent, one.parents)));
      }
    }
    for (const Isa isa : causalprune::available_isas()) {
      const std::vector<double> got = crossings(children, parents, one.blocks, isa, 1);
      check(got == want, std::string(causalprune::isa_name(isa)) + ": trees of " +
                             std::to_string(one.n) + " samples, " + std::to_string(one.children) +
                             " children, " + std::to_string(columns) + " parent blocks");
    }
  }
}

void check_trees_on_threads_and_ties() {
  const Samples parents = normal(1000, 6, 50), children = normal(1000, 3, 51);
  // Duplicated rows and a dead parent: ties everywhere.
  Samples tied = normal(120, 4, 52), below = normal(120, 2, 53);
  for (std::int64_t k = 0; k < 120; ++k) {
    for (std::int64_t c = 0; c < 4; ++c) tied.at(k, c) = c == 2 ? 0.0f : static_cast<float>(k % 3);
    for (std::int64_t c = 0; c < 2; ++c) below.at(k, c) = static_cast<float>(k % 2);
  }
  const std::vector<double> one = crossings(children, parents, {}, Isa::scalar, 1);
  const std::vector<double> ties = crossings(below, tied, {}, Isa::scalar, 1);
  for (const Isa isa : causalprune::available_isas()) {
    const std::string name = causalprune::isa_name(isa);
    check(same_bits(one, crossings(children, parents, {}, isa, 3)),
          name + ": same bits on 3 threads");
    check(same_bits(ties, crossings(below, tied, {}, isa, 1)), name + ": same bits under ties");
  }
}

void check_trees_refused() {
  const Samples few = normal(5, 1, 60), some = normal(9, 2, 61);
  Samples broken = normal(9, 2, 62), large = normal(9, 2, 63);
  broken.at(8, 1) = NAN;
  large.at(2, 0) = 2e12f;
  check_refused("few samples", {"children", "6", "5"},
                [&] { crossings(few, few, {}, Isa::scalar, 1); });
  check_refused("NaN in the reserve", {"parents", "nan", "[8, 1]"},
                [&] { crossings(some, broken, {}, Isa::scalar, 1); });
  check_refused("too large", {"children", "[2, 0]"},
                [&] { crossings(large, some, {}, Isa::scalar, 1); });
}

}  // namespace

int main() {
  check_histograms();
  check_trees();
  check_trees_on_threads_and_ties();
  check_trees_refused();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
