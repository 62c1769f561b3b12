// What the threads of relative_sensitivity's CUDA kernels compute, run on the host, against double
// precision: every blocking, several batches, both parts.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "common/aligned_array.hpp"
#include "cuda/sensitivity_tile.cuh"
#include "relative_sensitivity_cases.hpp"
#include "staged_host.hpp"

namespace {

using namespace causalprune::cuda;

// ---- relative_sensitivity ---------------------------------------------------------------------

template <int Across>
void run_part(const SensitivityPart& part, std::mt19937& draw) {
  run_staged<Denominators<Across>>(part, draw);
  if (part.aggregate == Aggregate::max || part.positions == 1) {
    run_staged<Shares<Across, true>>(part, draw);
  } else {
    run_staged<Shares<Across, false>>(part, draw);
  }
}

template <int Across>
std::vector<float> sensitivities(const Inputs& in, Aggregate aggregate, std::int64_t batch_floats,
                                 std::int64_t image_chunk, std::mt19937& draw) {
  std::vector<float> found(in.weight.size(), 0.0f);
  const SensitivityProblem p = in.problem(aggregate, found.data());
  SensitivityPlan plan = plan_sensitivity(p, batch_floats);
  if (plan.batch == 0) return found;
  const auto workspace = causalprune::aligned_array<float>(plan.workspace_floats);
  std::fill_n(workspace.get(), plan.workspace_floats, std::nanf(""));
  SensitivityPart& part = plan.part;
  place_workspace(part, workspace.get());
  *part.negative = 0;
  part.image_chunk = image_chunk;
  for (part.first_image = 0; part.first_image < p.n_images; part.first_image += plan.batch) {
    part.n_images = std::min(plan.batch, p.n_images - part.first_image);
    for (const bool of_negative : {false, true}) {
      part.of_negative = of_negative;
      run_part<Across>(part, draw);
    }
  }
  return found;
}

// Some more than one block of each blocking wide, more than a run of positions long.
const Layer kWideLayers[] = {
    {"130 outputs, 1x1", 3, 70, 2, 3, 130, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, Values::signed_},
    {"300 weights a filter", 2, 34, 5, 5, 18, {3, 3}, {1, 1}, {1, 1}},
    {"long image", 1, 3, 23, 19, 5, {3, 2}, {1, 1}, {1, 1}, {1, 1}, 1, Values::signed_, true},
};

template <int Across>
void check_sensitivity(const Layer& layer, unsigned seed, std::mt19937& draw) {
  const Inputs inputs(layer, seed);
  for (const Aggregate aggregate : kAggregates) {
    const std::vector<double> want = oracle(inputs, aggregate);
    const std::string name =
        std::string(layer.name) + ", " + name_of(aggregate) + ", across " + std::to_string(Across);
    const std::vector<float> got = sensitivities<Across>(inputs, aggregate, 1 << 20, 2, draw);
    const double worst = worst_error(got, want);
    check(worst <= 3e-5, name + ", off by " + std::to_string(worst));
    check(sensitivities<Across>(inputs, aggregate, 1, 1, draw) == got,
          name + ": the same bits image by image");
  }
}

void check_sensitivities(std::mt19937& draw) {
  const auto of_every_blocking = [&](const Layer& layer) {
    check_sensitivity<1>(layer, draw(), draw);
    check_sensitivity<2>(layer, draw(), draw);
    check_sensitivity<4>(layer, draw(), draw);
  };
  for (const Layer& layer : kLayers) of_every_blocking(layer);
  for (const Layer& layer : kWideLayers) of_every_blocking(layer);
}

// Nothing is refused on the device: what is not finite must show, and nowhere else.
void check_non_finite(std::mt19937& draw) {
  const Layer layer = {"", 2, 4, 6, 7, 6, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 2, Values::signed_};
  const std::int64_t of_filter = layer.weights();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto holds = [&](const Inputs& inputs, const auto& broken) {
    bool right = true;
    for (const Aggregate aggregate : kAggregates) {
      const std::vector<float> got = sensitivities<1>(inputs, aggregate, 1 << 20, 1, draw);
      for (std::size_t k = 0; k < got.size(); ++k) right &= std::isnan(got[k]) == broken(k);
    }
    return right;
  };
  for (const float value : {std::nanf(""), kInfinity, -kInfinity}) {
    const std::string name = std::to_string(value);
    Inputs of_x(layer, draw());
    of_x.x[3 * 6 * 7 + 20] = value;  // channel 3: of the second group
    check(holds(of_x, [&](std::size_t k) { return k >= 3 * static_cast<std::size_t>(of_filter); }),
          name + " in x: the filters that read it");
    Inputs of_weight(layer, draw());
    const auto place = static_cast<std::size_t>(of_filter + 4);
    of_weight.weight[place] = value;
    check(holds(of_weight,
                [&](std::size_t k) {
                  const bool filter = static_cast<std::int64_t>(k) / of_filter == 1;
                  const bool sign = (of_weight.weight[k] < 0.0f) == (value < 0.0f);
                  return filter && (std::isnan(value) || sign);
                }),
          name + " in weight: its filter and sign");
  }
  Inputs large(layer, draw());
  const auto place = static_cast<std::size_t>(of_filter + 4);
  large.weight[place] = 3e38f;
  large.x[20] = 9.0f;
  check(holds(large,
              [&](std::size_t k) {
                return static_cast<std::int64_t>(k) / of_filter == 1 && large.weight[k] >= 0.0f;
              }),
        "a sum beyond float32: its filter and sign");
}

void check_refused() {
  const Layer layer = {"refused", 2, 4, 6, 7, 6, {3, 3}, {1, 1}, {1, 1}};
  const auto with = [&](const std::function<void(SensitivityProblem&)>& change) {
    return [&layer, change] {
      const Inputs inputs(layer, 7);
      SensitivityProblem p = inputs.problem(Aggregate::max, nullptr);
      change(p);
      plan_sensitivity(p, 1 << 20);
    };
  };
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  refused(with([](auto& p) { p.groups = 5; }), "groups");
  refused(with([](auto& p) { p.stride_width = 0; }), "stride");
  refused(with([](auto& p) { p.n_images = kHuge; }), "64 bits");
  refused(with([](auto& p) { p.padding_height = std::int64_t{1} << 30; }), "2**30");
}

}  // namespace

int main() {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 draw(seed);
  check_sensitivities(draw);
  check_non_finite(draw);
  check_refused();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
