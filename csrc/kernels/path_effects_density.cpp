#include "kernels/path_effects_density.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "common/aligned_array.hpp"

namespace causalprune {

namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kInputs = 16, kPositions = 48;
constexpr int kTilesATime = 8, kTimes = 12;

// A tile of which every second input value is zero, to be looked at either way.
class HalfZeroTile {
 public:
  explicit HalfZeroTile(const PathKernels& kernels)
      : kernels_(kernels), blocks_(kernels.pointwise_blocks) {
    for (std::int64_t i = 0; i < kInputs; ++i) {
      for (std::int64_t k = 0; k < kPositions / 2; ++k) {
        const std::int64_t at = i * list_pitch_ + k;
        position_[static_cast<std::size_t>(at)] = static_cast<std::int32_t>(2 * k + i % 2);
      }
    }
  }

  // Seconds for kTilesATime tiles, the least of kTimes.
  double seconds(Activation activation, bool dense) {
    const std::vector<std::uint8_t> used(1, dense ? 1 : 0);
    const std::vector<std::uint8_t> negative(1, 0);
    PathPointwiseJob job{};
    job.tile = {kPositions, start_.get(), after_.get(), weighting_.get(), false};
    job.blocks = blocks_;
    job.image_positions = kPositions;
    job.n_inputs = kInputs;
    job.list_pitch = list_pitch_;
    job.position = position_.data();
    job.value = value_.data();
    job.count = count_.data();
    job.negative = negative.data();
    job.dense_group_used = used.data();
    job.dense = dense_.data();
    job.weight = weight_.get();
    job.weight_block = kInputs * kLanes;
    job.partial = partial_.get();
    job.unit = unit_.get();
    double best = std::numeric_limits<double>::infinity();
    for (int time = 0; time < kTimes; ++time) {
      const auto begin = std::chrono::steady_clock::now();
      for (int tile = 0; tile < kTilesATime; ++tile) kernels_.pointwise(activation, job);
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
      best = std::min(best, spent.count());
    }
    return best;
  }

 private:
  static AlignedArray<float> filled(std::int64_t count, float value) {
    AlignedArray<float> values = aligned_array<float>(count);
    std::fill_n(values.get(), count, value);
    return values;
  }

  const PathKernels& kernels_;
  std::int64_t blocks_;
  std::int64_t list_pitch_ = kPositions;
  AlignedArray<float> start_ = filled(kPositions * blocks_ * kLanes, -0.5f);
  AlignedArray<float> after_ = filled(kPositions * blocks_ * kLanes, -0.25f);
  AlignedArray<float> weighting_ = filled(kPositions * blocks_ * kLanes, 0.5f);
  AlignedArray<float> weight_ = filled(blocks_ * kInputs * kLanes, 0.125f);
  AlignedArray<float> partial_ = filled(blocks_ * kInputs * kLanes, 0.0f);
  AlignedArray<float> unit_ = filled(kInputs * kLanes, 0.0f);
  std::vector<float> value_ = std::vector<float>(kInputs * kPositions, 1.0f);
  std::vector<float> dense_ = std::vector<float>(kPositions * kLanes, 1.0f);
  std::vector<std::int32_t> position_ = std::vector<std::int32_t>(kInputs * kPositions, 0);
  std::vector<std::int32_t> count_ = std::vector<std::int32_t>(kInputs, kPositions / 2);
};

}  // namespace

double dense_from(const PathKernels& kernels, Activation activation) {
  if (!is_piecewise_linear(activation)) return 1.0;  // each effect costs far more than its loads
  static std::mutex mutex;
  static std::map<std::pair<const PathKernels*, Activation>, double> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, is_new] = known.try_emplace({&kernels, activation}, 1.0);
  if (is_new) {
    HalfZeroTile tile(kernels);
    const double listed = tile.seconds(activation, false);
    found->second = std::min(1.0, 0.5 * tile.seconds(activation, true) / listed);
  }
  return found->second;
}

}  // namespace causalprune
