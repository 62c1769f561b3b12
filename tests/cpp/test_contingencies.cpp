// count_contingencies against its definition, on sets of sets.

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "checks.hpp"
#include "kernels/contingencies.hpp"

namespace {

using causalprune::Isa;
using Units = std::set<std::int64_t>;

struct Tables {
  std::int64_t n_units, n_images, max_size;
  std::vector<Units> rows;
  std::vector<std::uint8_t> sets, flipped;

  std::int64_t n_sets() const { return static_cast<std::int64_t>(rows.size()); }
  bool flips(std::int64_t row, std::int64_t image) const {
    return flipped[static_cast<std::size_t>(row * n_images + image)] != 0;
  }
};

struct Found {
  std::vector<std::int64_t> counts, first;

  bool operator==(const Found& other) const {
    return counts == other.counts && first == other.first;
  }
};

Tables tables(std::vector<Units> rows, std::int64_t n_units, std::int64_t n_images, unsigned seed) {
  Tables t{n_units, n_images, 0, std::move(rows), {}, {}};
  std::mt19937 engine(seed);
  t.sets.assign(static_cast<std::size_t>(t.n_sets() * n_units), 0);
  for (std::int64_t row = 0; row < t.n_sets(); ++row) {
    const Units& units = t.rows[static_cast<std::size_t>(row)];
    t.max_size = std::max<std::int64_t>(t.max_size, static_cast<std::int64_t>(units.size()));
    for (const std::int64_t unit : units) {
      t.sets[static_cast<std::size_t>(row * n_units + unit)] = 1;
    }
  }
  t.flipped.assign(static_cast<std::size_t>(t.n_sets() * n_images), 0);
  for (std::uint8_t& flip : t.flipped) {
    // Any byte but 0 is true.
    flip = engine() % 2 == 0 ? 0 : static_cast<std::uint8_t>(1 + engine() % 255);
  }
  return t;
}

std::vector<Units> random_rows(std::int64_t n_units, std::int64_t largest, std::size_t n,
                               unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<Units> rows;
  std::set<Units> known;
  for (int attempt = 0; attempt < 100'000 && rows.size() < n; ++attempt) {
    Units units;
    const std::int64_t size = 1 + static_cast<std::int64_t>(engine()) % largest;
    for (std::int64_t k = 0; k < size; ++k) {
      units.insert(static_cast<std::int64_t>(engine()) % n_units);
    }
    if (known.insert(units).second) rows.push_back(units);
  }
  return rows;
}

Found found(const Tables& t, Isa isa, int threads) {
  Found result;
  result.counts.assign(static_cast<std::size_t>(t.n_images * t.n_units * t.max_size), -7);
  result.first.assign(static_cast<std::size_t>(t.n_images * t.n_units), -7);
  causalprune::count_contingencies({t.n_sets(), t.n_units, t.n_images, t.max_size, t.sets.data(),
                                    t.flipped.data(), result.counts.data(), result.first.data()},
                                   isa, threads);
  return result;
}

Found by_definition(const Tables& t) {
  Found result;
  result.counts.assign(static_cast<std::size_t>(t.n_images * t.n_units * t.max_size), 0);
  result.first.assign(static_cast<std::size_t>(t.n_images * t.n_units), -1);
  std::map<Units, std::int64_t> place;
  for (std::int64_t row = 0; row < t.n_sets(); ++row) place[t.rows[row]] = row;
  std::vector<std::int64_t> order(t.rows.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return t.rows[a].size() < t.rows[b].size();
  });
  for (const std::int64_t row : order) {
    for (const std::int64_t unit : t.rows[row]) {
      Units rest = t.rows[row];
      rest.erase(unit);
      if (!rest.empty() && place.count(rest) == 0) continue;
      for (std::int64_t image = 0; image < t.n_images; ++image) {
        const bool holds = rest.empty() || !t.flips(place[rest], image);
        if (!holds || !t.flips(row, image)) continue;
        const std::int64_t at = image * t.n_units + unit;
        ++result.counts[at * t.max_size + static_cast<std::int64_t>(rest.size())];
        if (result.first[at] < 0) result.first[at] = row;
      }
    }
  }
  return result;
}

void check_definition() {
  const struct {
    std::int64_t n_units, largest;
    std::size_t n;
    std::int64_t n_images;
  } cases[] = {{1, 1, 1, 1},      {3, 3, 7, 5},     {6, 4, 40, 63},    {9, 5, 200, 64},
               {9, 3, 120, 65},   {64, 2, 900, 70}, {65, 2, 900, 130}, {10, 10, 600, 257},
               {12, 3, 200, 513}, {7, 3, 60, 1025}, {130, 3, 500, 3},  {5, 2, 0, 3}};
  unsigned seed = 1;
  for (const auto& one : cases) {
    const Tables t =
        tables(random_rows(one.n_units, one.largest, one.n, seed), one.n_units, one.n_images, seed);
    ++seed;
    const Found want = by_definition(t);
    for (const Isa isa : causalprune::available_isas()) {
      check(found(t, isa, 1) == want && found(t, isa, 3) == want,
            std::string(causalprune::isa_name(isa)) + ": " + std::to_string(t.n_sets()) +
                " sets of " + std::to_string(t.n_units) + " units, " + std::to_string(t.n_images) +
                " images");
    }
  }
}

// All pairs flip, no unit alone: many contingency sets, whose carries go all the way.
void check_large_counts() {
  const std::int64_t n_units = 150, n_images = 600;
  std::vector<Units> rows;
  for (std::int64_t a = 0; a < n_units; ++a) rows.push_back({a});
  for (std::int64_t a = 0; a < n_units; ++a) {
    for (std::int64_t b = 0; b < a; ++b) rows.push_back({a, b});
  }
  Tables t = tables(rows, n_units, n_images, 20);
  for (std::size_t k = 0; k < t.flipped.size(); ++k) {
    t.flipped[k] = k >= static_cast<std::size_t>(n_units * n_images);
  }
  for (const Isa isa : causalprune::available_isas()) {
    const Found all = found(t, isa, 2);
    bool right = true;
    for (std::size_t k = 0; k < all.counts.size(); k += 2) {
      right = right && all.counts[k] == 0 && all.counts[k + 1] == n_units - 1;
    }
    check(right, std::string(causalprune::isa_name(isa)) + ": 149 sets for every unit");
  }
}

void check_refusals() {
  const auto run = [](const Tables& t) { found(t, Isa::scalar, 1); };
  const std::vector<Units> twice = {{0, 1}, {2}, {1, 0}};
  refused([&] { run(tables(twice, 3, 2, 1)); }, "rows 0 and 2");
  refused([&] { run(tables({{0}, {}}, 3, 2, 1)); }, "none in row 1");
  Tables small = tables({{0}, {1, 2}}, 3, 2, 1);
  small.max_size = 1;
  refused([&] { run(small); }, "got 1 with 2 units in row 1");
  small.max_size = 4;
  refused([&] { run(small); }, "number of units, 3, got 4");
  // Rows are looked at without images too.
  refused([&] { run(tables(twice, 3, 0, 1)); }, "rows 0 and 2");
  check(found(tables({{0}}, 1, 0, 1), Isa::scalar, 1).first.empty(), "no images");
}

}  // namespace

int main() {
  check_definition();
  check_large_counts();
  check_refusals();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
