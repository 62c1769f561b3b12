// Packs the rows, finds every row's subsets that lack one unit, and hands each unit's rows out.

#include "kernels/contingencies.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

constexpr std::int32_t kNoRow = -1;

const ContingencyKernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kContingencyKernelsAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kContingencyKernelsAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kContingencyKernelsNeon;
#endif
    default: return kContingencyKernelsScalar;
  }
}

// Of few images a wide vector would be empty but for one word, and yet be read.
const ContingencyKernels& counting_kernels_of(Isa isa, std::int64_t n_images) {
  return n_images <= kImagesInWord ? kContingencyKernelsScalar : kernels_of(isa);
}

std::int64_t rounded_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// The last step of splitmix64: every bit of the number moves about half of the result's.
std::uint64_t mixed(std::uint64_t x) {
  x *= 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// The rows as lists of units, and where a row is that has given units.
class Sets {
 public:
  Sets(const ContingenciesProblem& p, const ContingencyKernels& kernels) : n_(p.n_sets) {
    for (std::int64_t unit = 0; unit < p.n_units; ++unit) {
      unit_hash_.push_back(mixed(static_cast<std::uint64_t>(unit) + 1));
    }
    read(p, kernels);
    int bits = 1;
    while ((std::int64_t{1} << bits) < 2 * n_) ++bits;
    shift_ = 64 - bits;
    table_.assign(std::size_t{1} << bits, kNoRow);
    for (std::int64_t row = 0; row < n_; ++row) insert(static_cast<std::int32_t>(row));
  }

  std::int64_t begin(std::int64_t row) const { return start_[row]; }
  std::int64_t size(std::int64_t row) const { return start_[row + 1] - start_[row]; }
  std::int64_t n_members() const { return start_[n_]; }
  const std::int32_t* units(std::int64_t row) const { return units_.data() + start_[row]; }

  // The row that has all units of `row` but the one at `place`; the number of rows for none.
  std::int32_t rest(std::int64_t row, std::int64_t place) const {
    const std::int32_t* all = units(row);
    const std::int64_t n = size(row) - 1;
    if (n == 0) return static_cast<std::int32_t>(n_);
    const std::uint64_t hash = hash_[row] ^ unit_hash_[all[place]];
    // Without a branch on the place, which no processor could foresee.
    const auto same = [&](const std::int32_t* other) {
      std::int32_t differing = 0;
      for (std::int64_t k = 0; k < n; ++k) differing |= other[k] ^ all[k + (k >= place ? 1 : 0)];
      return differing == 0;
    };
    return find(hash, n, same);
  }

 private:
  void read(const ContingenciesProblem& p, const ContingencyKernels& kernels) {
    std::vector<std::uint64_t> bits(static_cast<std::size_t>(p.n_units / kImagesInWord + 1));
    start_.reserve(static_cast<std::size_t>(n_) + 1);
    hash_.reserve(static_cast<std::size_t>(n_));
    start_.push_back(0);
    for (std::int64_t row = 0; row < n_; ++row) {
      kernels.pack(p.sets + row * p.n_units, p.n_units, bits.data());
      std::uint64_t hash = 0;
      for (std::int64_t first = 0; first < p.n_units; first += kImagesInWord) {
        for (std::uint64_t left = bits[first / kImagesInWord]; left != 0; left &= left - 1) {
          units_.push_back(static_cast<std::int32_t>(first + __builtin_ctzll(left)));
          hash ^= unit_hash_[units_.back()];
        }
      }
      start_.push_back(static_cast<std::int64_t>(units_.size()));
      hash_.push_back(hash);
      if (size(row) == 0) {
        fail(
            "sets: expected at least one unit in every row (the empty set is implied), got none in "
            "row ",
            row);
      }
      if (size(row) > p.max_size) {
        fail("max_size: expected at least the size of the largest row, got ", p.max_size, " with ",
             size(row), " units in row ", row);
      }
    }
  }

  template <class Same>
  std::int32_t find(std::uint64_t hash, std::int64_t n, const Same& same) const {
    for (std::uint64_t at = hash >> shift_; table_[at] != kNoRow; at = next(at)) {
      const std::int32_t row = table_[at];
      if (hash_[row] == hash && size(row) == n && same(units(row))) return row;
    }
    return kNoRow;
  }

  void insert(std::int32_t row) {
    const std::int32_t* own = units(row);
    const std::int64_t n = size(row);
    const auto same = [&](const std::int32_t* other) { return std::equal(own, own + n, other); };
    const std::int32_t known = find(hash_[row], n, same);
    if (known != kNoRow) {
      fail("sets: expected distinct rows, got rows ", known, " and ", row, " with the same units");
    }
    std::uint64_t at = hash_[row] >> shift_;
    while (table_[at] != kNoRow) at = next(at);
    table_[at] = row;
  }

  std::uint64_t next(std::uint64_t at) const { return (at + 1) & (table_.size() - 1); }

  std::int64_t n_;
  int shift_ = 0;
  std::vector<std::uint64_t> unit_hash_, hash_;  // of units, of rows
  std::vector<std::int64_t> start_;              // [n + 1] into units_
  std::vector<std::int32_t> units_, table_;
};

// For every unit and size of the contingency set, the rows S and S - f, in the order of rows.
struct Pairs {
  std::vector<std::int64_t> start;  // [units * max_size + 1]
  AlignedArray<std::int32_t> removed, rest;
};

AlignedArray<std::int32_t> all_rests(const Sets& sets, std::int64_t n_sets, int threads) {
  constexpr std::int64_t kRows = 256;
  AlignedArray<std::int32_t> rests = aligned_array<std::int32_t>(sets.n_members());
  const std::int64_t tasks = rounded_up(n_sets, kRows) / kRows;
  const int workers = worker_count(threads, tasks, checked_product(sets.n_members(), 16));
  parallel_for(workers, tasks, [&](int, std::int64_t task) {
    const std::int64_t last = std::min((task + 1) * kRows, n_sets);
    for (std::int64_t row = task * kRows; row < last; ++row) {
      for (std::int64_t place = 0; place < sets.size(row); ++place) {
        rests[sets.begin(row) + place] = sets.rest(row, place);
      }
    }
  });
  return rests;
}

Pairs paired(const Sets& sets, const ContingenciesProblem& p, int threads) {
  const AlignedArray<std::int32_t> rests = all_rests(sets, p.n_sets, threads);
  const auto for_each = [&](const auto& body) {
    for (std::int64_t row = 0; row < p.n_sets; ++row) {
      const std::int64_t n = sets.size(row);
      for (std::int64_t place = 0; place < n; ++place) {
        const std::int32_t rest = rests[sets.begin(row) + place];
        if (rest != kNoRow) body(row, sets.units(row)[place] * p.max_size + n - 1, rest);
      }
    }
  };
  const std::int64_t n_lists = checked_product(p.n_units, p.max_size);
  Pairs pairs;
  pairs.start.assign(static_cast<std::size_t>(n_lists) + 1, 0);
  for_each([&](std::int64_t, std::int64_t list, std::int32_t) { ++pairs.start[list + 1]; });
  for (std::int64_t list = 0; list < n_lists; ++list) {
    pairs.start[list + 1] = pairs.start[list] + rounded_up(pairs.start[list + 1], kWitnessRows);
  }
  // What fills a list up is the empty set beside itself, which no image has.
  const std::int64_t n = pairs.start[n_lists];
  pairs.removed = aligned_array<std::int32_t>(n);
  pairs.rest = aligned_array<std::int32_t>(n);
  std::fill_n(pairs.removed.get(), n, static_cast<std::int32_t>(p.n_sets));
  std::fill_n(pairs.rest.get(), n, static_cast<std::int32_t>(p.n_sets));
  std::vector<std::int64_t> next(pairs.start.begin(), pairs.start.end() - 1);
  for_each([&](std::int64_t row, std::int64_t list, std::int32_t rest) {
    const std::int64_t at = next[list]++;
    pairs.removed[at] = static_cast<std::int32_t>(row);
    pairs.rest[at] = rest;
  });
  return pairs;
}

// Rows of `flipped` as bits, [blocks of images, rows and the empty set, words of a block].
struct Flips {
  AlignedArray<std::uint64_t> bits;
  std::int64_t block_words, block_images, n_blocks, n_rows;

  const std::uint64_t* block(std::int64_t at) const {
    return bits.get() + at * n_rows * block_words;
  }
};

Flips packed(const ContingenciesProblem& p, const ContingencyKernels& kernels, std::int64_t words,
             int threads) {
  constexpr std::int64_t kRows = 64;
  Flips flips{nullptr, words, words * kImagesInWord, 0, p.n_sets + 1};
  flips.n_blocks = rounded_up(p.n_images, flips.block_images) / flips.block_images;
  const std::int64_t row_words = flips.n_blocks * flips.block_words;
  flips.bits = aligned_array<std::uint64_t>(checked_product(flips.n_rows, row_words));
  const std::int64_t tasks = rounded_up(flips.n_rows, kRows) / kRows;
  const int workers = worker_count(threads, tasks, checked_product(p.n_sets, p.n_images) / 8);
  parallel_for(workers, tasks, [&](int, std::int64_t task) {
    const std::int64_t last = std::min((task + 1) * kRows, flips.n_rows);
    for (std::int64_t row = task * kRows; row < last; ++row) {
      for (std::int64_t block = 0; block < flips.n_blocks; ++block) {
        std::uint64_t* to = flips.bits.get() + (block * flips.n_rows + row) * flips.block_words;
        const std::int64_t first = block * flips.block_images;
        const std::int64_t n =
            row == p.n_sets ? 0 : std::min(flips.block_images, p.n_images - first);
        if (n < flips.block_images) std::fill_n(to, flips.block_words, 0);
        if (n > 0) kernels.pack(p.flipped + row * p.n_images + first, n, to);
      }
    }
  });
  return flips;
}

// What one thread works in.
struct Tallies {
  AlignedArray<std::int64_t> counts;  // [max_size, images of a block]
  AlignedArray<std::int64_t> first;   // [images of a block]
  AlignedArray<std::uint64_t> open;   // [words of a block] images without a contingency set yet
};

void count_unit(const ContingenciesProblem& p, const ContingencyKernels& kernels,
                const Flips& flips, const Pairs& pairs, std::int64_t block, std::int64_t unit,
                Tallies& own) {
  const std::int64_t width = flips.block_images, first_image = block * width;
  const std::int64_t n_images = std::min(width, p.n_images - first_image);
  std::fill_n(own.first.get(), width, -1);
  std::fill_n(own.open.get(), flips.block_words, ~std::uint64_t{0});
  for (std::int64_t size = 0; size < p.max_size; ++size) {
    const std::int64_t list = unit * p.max_size + size;
    const std::int64_t begin = pairs.start[list], n = pairs.start[list + 1] - begin;
    const WitnessRows rows{flips.block(block), pairs.removed.get() + begin,
                           pairs.rest.get() + begin, n,
                           rounded_up(n_images, kImagesInWord) / kImagesInWord};
    kernels.count(rows, own.counts.get() + size * width, own.open.get(), own.first.get());
  }
  for (std::int64_t image = 0; image < n_images; ++image) {
    const std::int64_t at = (first_image + image) * p.n_units + unit;
    p.first[at] = own.first[image];
    std::int64_t* counts = p.counts + at * p.max_size;
    for (std::int64_t size = 0; size < p.max_size; ++size) {
      counts[size] = own.counts[size * width + image];
    }
  }
}

}  // namespace

void count_contingencies(const ContingenciesProblem& p, Isa isa, int threads) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (p.n_sets >= kMost || p.n_units >= kMost) {
    fail("sets: expected fewer than 2^31 - 1 rows and units, got [", p.n_sets, ", ", p.n_units,
         "]");
  }
  if (p.max_size < 0 || p.max_size > p.n_units) {
    fail("max_size: expected 0 to the number of units, ", p.n_units, ", got ", p.max_size);
  }
  const ContingencyKernels& kernels = kernels_of(isa);
  const ContingencyKernels& counting = counting_kernels_of(isa, p.n_images);
  const Sets sets(p, kernels);
  if (p.n_images == 0 || p.n_units == 0) return;
  const Pairs pairs = paired(sets, p, threads);
  const Flips flips = packed(p, kernels, counting.words, threads);
  const std::int64_t tasks = checked_product(flips.n_blocks, p.n_units);
  const std::int64_t work =
      checked_product(pairs.start.back() + tasks, flips.n_blocks * flips.block_words);
  const int workers = worker_count(threads, tasks, work);
  std::vector<Tallies> tallies(static_cast<std::size_t>(workers));
  for (Tallies& own : tallies) {
    own.counts = aligned_array<std::int64_t>(checked_product(p.max_size, flips.block_images));
    own.first = aligned_array<std::int64_t>(flips.block_images);
    own.open = aligned_array<std::uint64_t>(flips.block_words);
  }
  parallel_for(workers, tasks, [&](int worker, std::int64_t task) {
    count_unit(p, counting, flips, pairs, task / p.n_units, task % p.n_units,
               tallies[static_cast<std::size_t>(worker)]);
  });
}

}  // namespace causalprune
