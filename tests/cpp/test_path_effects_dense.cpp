// 1x1 layers of path_effects: a group of inputs by its lists and by all of its values must give the
// same bits, because timing decides between the two.

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "common/isa.hpp"
#include "kernels/path_effects.hpp"
#include "kernels/path_effects_density.hpp"

namespace {

using causalprune::Activation;
using causalprune::Isa;
using causalprune::PathKernels;
using causalprune::PathPointwiseJob;

constexpr std::int64_t kLanes = 16, kInputs = 16;

struct Case {
  Activation activation;
  bool weighted, all_statistics, with_negative;
  std::int64_t images, image_positions;
};

struct Sums {
  std::vector<float> partial, unit;
};

std::size_t count_of(std::int64_t n) { return static_cast<std::size_t>(n); }

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Tile {
 public:
  Tile(const PathKernels& kernels, const Case& of, unsigned seed)
      : kernels_(kernels),
        case_(of),
        positions_(of.images * of.image_positions),
        random_(seed),
        start_(drawn(positions_ * kernels.pointwise_blocks * kLanes)),
        after_(start_.size()),
        weighting_(drawn(positions_ * kernels.pointwise_blocks * kLanes)),
        weight_(drawn(kernels.pointwise_blocks * kInputs * kLanes)),
        dense_(count_of(positions_ * kLanes)),
        value_(count_of(kInputs * positions_)),
        position_(value_.size()),
        count_(count_of(kInputs)) {
    kernels.prepare(of.activation, positions_ * kernels.pointwise_blocks, start_.data(),
                    after_.data());
    for (std::int64_t i = 0; i < kInputs; ++i) {
      for (std::int64_t at = 0; at < positions_; ++at) {
        float x = normal_(random_);
        if (!of.with_negative && x < 0.0f) x = 0.0f;
        if (at % 5 == i % 5) x = 0.0f;
        dense_[count_of(at * kLanes + i)] = x;
        if (x == 0.0f) continue;
        const std::size_t entry = count_of(i * positions_ + count_[count_of(i)]++);
        value_[entry] = x;
        position_[entry] = static_cast<std::int32_t>(at);
      }
    }
  }

  Sums run(bool dense) const {
    const std::int64_t blocks = kernels_.pointwise_blocks;
    const std::uint8_t used = dense ? 1 : 0, negative = case_.with_negative ? 1 : 0;
    Sums sums;
    sums.partial.assign(count_of(blocks * kInputs * (case_.all_statistics ? 4 : 1) * kLanes), 0.5f);
    sums.unit.assign(count_of(case_.images * kInputs * kLanes), 0.25f);
    PathPointwiseJob job{};
    job.tile = {positions_, start_.data(), after_.data(),
                case_.weighted ? weighting_.data() : nullptr, case_.all_statistics};
    job.blocks = blocks;
    job.image_positions = case_.image_positions;
    job.n_inputs = kInputs;
    job.list_pitch = positions_;
    job.position = position_.data();
    job.value = value_.data();
    job.count = count_.data();
    job.negative = &negative;
    job.dense_group_used = &used;
    job.dense = dense_.data();
    job.weight = weight_.data();
    job.weight_block = kInputs * kLanes;
    job.partial = sums.partial.data();
    job.unit_slot = kInputs * kLanes;
    job.unit = sums.unit.data();
    kernels_.pointwise(case_.activation, job);
    return sums;
  }

 private:
  std::vector<float> drawn(std::int64_t n) {
    std::vector<float> values(count_of(n));
    for (float& value : values) value = normal_(random_);
    return values;
  }

  const PathKernels& kernels_;
  Case case_;
  std::int64_t positions_;
  std::mt19937 random_;
  std::normal_distribution<float> normal_{0.0f, 1.0f};
  std::vector<float> start_, after_, weighting_, weight_, dense_, value_;
  std::vector<std::int32_t> position_, count_;
};

void check_same_bits() {
  unsigned seed = 1;
  for (const Isa isa : causalprune::available_isas()) {
    int broken = 0, equal_to_nothing = 0, cases = 0;
    for (int activation = 0; activation < 5; ++activation) {
      for (int flags = 0; flags < 8; ++flags) {
        for (const std::int64_t images : {1, 3}) {
          const Case of{static_cast<Activation>(activation),
                        (flags & 1) != 0,
                        (flags & 2) != 0,
                        (flags & 4) != 0,
                        images,
                        7 + static_cast<std::int64_t>(seed % 6)};
          const Tile tile(causalprune::path_kernels(isa), of, seed++);
          const Sums listed = tile.run(false), dense = tile.run(true);
          broken +=
              !same_bits(listed.partial, dense.partial) || !same_bits(listed.unit, dense.unit);
          equal_to_nothing += listed.unit == std::vector<float>(listed.unit.size(), 0.25f);
          ++cases;
        }
      }
    }
    check(broken == 0 && equal_to_nothing == 0,
          std::string(causalprune::isa_name(isa)) + ": listed and dense inputs, the same bits in " +
              std::to_string(cases - broken) + " of " + std::to_string(cases) + " cases");
  }
}

void check_threshold() {
  for (const Isa isa : causalprune::available_isas()) {
    const PathKernels& kernels = causalprune::path_kernels(isa);
    const double share = causalprune::dense_from(kernels, Activation::relu);
    check(
        share > 0.0 && share <= 1.0 && causalprune::dense_from(kernels, Activation::relu) == share,
        std::string(causalprune::isa_name(isa)) + ": dense from a share of " +
            std::to_string(share) + ", measured once");
    check(causalprune::dense_from(kernels, Activation::gelu) == 1.0,
          "a smooth activation lists what is not zero");
  }
}

}  // namespace

int main() {
  check_same_bits();
  check_threshold();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
