// relative_sensitivity on every instruction set this machine has, against a brute-force oracle in
// double precision. No framework: one line for each check; the exit status tells whether all of
// them held.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.hpp"
#include "relative_sensitivity_cases.hpp"

namespace {

std::vector<float> run(const Inputs& in, Aggregate aggregate, Isa isa, int threads) {
  std::vector<float> found(in.weight.size(), std::numeric_limits<float>::quiet_NaN());
  causalprune::relative_sensitivity(in.problem(aggregate, found.data()), isa, threads);
  return found;
}

// ---- checks -----------------------------------------------------------------------------------

void check_layers() {
  unsigned seed = 1;
  for (const Layer& layer : kLayers) {
    const Inputs inputs(layer, seed++);
    for (const Aggregate aggregate : kAggregates) {
      const std::vector<double> want = oracle(inputs, aggregate);
      for (const Isa isa : causalprune::available_isas()) {
        const std::vector<float> got = run(inputs, aggregate, isa, 1);
        const double worst = worst_error(got, want);
        check(worst <= 3e-5, std::string(causalprune::isa_name(isa)) + ": " + layer.name + ", " +
                                 name_of(aggregate) + ", off by " + std::to_string(worst));
      }
    }
  }
}

// Each is more than 2^20 multiply-adds, below which no thread is started.
const Layer kThreadedLayers[] = {
    {"3x3", 5, 20, 14, 14, 40, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, Values::signed_},
    {"groups", 3, 24, 14, 14, 96, {3, 3}, {1, 1}, {0, 0}, {1, 1}, 3},
    {"one image", 1, 64, 20, 20, 50},
};

void check_threads() {
  unsigned seed = 100;
  for (const Layer& layer : kThreadedLayers) {
    const Inputs inputs(layer, seed++);
    for (const Isa isa : causalprune::available_isas()) {
      for (const Aggregate aggregate : kAggregates) {
        const std::vector<float> one = run(inputs, aggregate, isa, 1);
        for (const int threads : {2, 5}) {
          const std::vector<float> many = run(inputs, aggregate, isa, threads);
          check(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)) == 0,
                std::string(causalprune::isa_name(isa)) + ": same bits on " +
                    std::to_string(threads) + " threads, " + layer.name + ", " +
                    name_of(aggregate));
        }
      }
    }
  }
}

void check_refused(const char* what, const std::vector<std::string>& mentions,
                   const std::function<void()>& call) {
  std::string message = "no exception";
  bool holds = false;
  try {
    call();
  } catch (const std::invalid_argument& error) {
    message = error.what();
    holds = std::all_of(mentions.begin(), mentions.end(), [&](const std::string& part) {
      return message.find(part) != std::string::npos;
    });
  } catch (const std::exception& error) {
    message = std::string("another exception: ") + error.what();
  }
  check(holds, std::string("refused, ") + what + ": " + message);
}

void check_bad_input() {
  const Layer layer = {"refused", 2, 4, 6, 7, 6, {3, 3}, {1, 1}, {1, 1}};
  const auto with = [&](const std::function<void(SensitivityProblem&)>& change) {
    return [&layer, change] {
      const Inputs inputs(layer, 7);
      std::vector<float> found(inputs.weight.size());
      SensitivityProblem p = inputs.problem(Aggregate::max, found.data());
      change(p);
      causalprune::relative_sensitivity(p, Isa::scalar, 1);
    };
  };
  const auto holding = [&](bool in_weight, std::size_t place, float value) {
    return [&layer, in_weight, place, value] {
      Inputs inputs(layer, 7);
      (in_weight ? inputs.weight : inputs.x)[place] = value;
      run(inputs, Aggregate::mean, causalprune::available_isas().back(), 1);
    };
  };
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  check_refused("no group", {"groups", "0"}, with([](auto& p) { p.groups = 0; }));
  check_refused("groups divide neither", {"groups", "5"}, with([](auto& p) { p.groups = 5; }));
  check_refused("stride 0", {"stride", "0"}, with([](auto& p) { p.stride_height = 0; }));
  check_refused("padding below 0", {"padding", "-1"}, with([](auto& p) { p.padding_width = -1; }));
  check_refused("dilation 0", {"dilation", "0"}, with([](auto& p) { p.dilation_height = 0; }));
  check_refused("empty kernel", {"weight", "0"}, with([](auto& p) { p.kernel_width = 0; }));
  check_refused("padding beyond 64 bits", {"padding"},
                with([](auto& p) { p.padding_height = kHuge; }));
  check_refused("NaN in x", {"x:", "nan", "[1, 0, 0, 1]"}, holding(false, 4 * 6 * 7 + 1, kNan));
  check_refused("infinity in x", {"x:", "inf", "[0, 0, 0, 3]"}, holding(false, 3, kInfinity));
  check_refused("NaN in weight", {"weight:", "nan", "[1, 0, 0, 2]"}, holding(true, 38, kNan));
  check_refused("sums beyond float32", {"float32"}, holding(true, 40, 3e38f));
  check_refused("an unknown aggregate", {"aggregate", "median"},
                [] { causalprune::aggregate_by_name("median"); });
}

void check_small_sums() {
  // Below the threshold nothing has a share; above it a lone weight has all of it.
  for (const Isa isa : causalprune::available_isas()) {
    for (const float value : {1e-8f, 1.1920929e-7f, 1.3e-7f}) {
      const Layer layer = {"small", 1, 1, 1, 1, 1};
      Inputs inputs(layer, 3);
      inputs.x[0] = value;
      inputs.weight[0] = -1.0f;
      const float want = value > causalprune::kSmallestDenominator ? 1.0f : 0.0f;
      const float got = run(inputs, Aggregate::max, isa, 1)[0];
      check(std::abs(got - want) <= 1e-6f, std::string(causalprune::isa_name(isa)) + ": a sum of " +
                                               std::to_string(value * 1e9f) + "e-9 gives " +
                                               std::to_string(got));
    }
  }
}

}  // namespace

int main() {
  check_layers();
  check_threads();
  check_bad_input();
  check_small_sums();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
