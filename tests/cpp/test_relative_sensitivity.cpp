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

#include "kernels/relative_sensitivity.hpp"

namespace {

using causalprune::Aggregate;
using causalprune::Isa;
using causalprune::SensitivityProblem;

int passed = 0, failed = 0;

void check(bool holds, const std::string& what) {
  std::printf("%s  %s\n", holds ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  ++(holds ? passed : failed);
}

// ---- layers and inputs ------------------------------------------------------------------------

enum class Values { rectified, signed_, dark };  // dark: half of the images all zero

struct Layer {
  const char* name;
  std::int64_t images, inputs, height, width, outputs;
  std::int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
  std::int64_t groups = 1;
  Values values = Values::rectified;
  bool channels_last = false;

  std::int64_t out(int axis) const {
    const std::int64_t size = axis == 0 ? height : width;
    const std::int64_t room = size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
    return room < 0 ? 0 : room / stride[axis] + 1;
  }
  std::int64_t weights() const { return inputs / groups * kernel[0] * kernel[1]; }
};

const Layer kLayers[] = {
    {"one by one", 1, 1, 1, 1, 1},
    {"linear", 3, 97, 1, 1, 15},
    {"linear, signed", 5, 33, 1, 1, 17, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, Values::signed_},
    {"tokens, signed", 2, 15, 11, 1, 33, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, Values::signed_, true},
    {"3x3", 2, 3, 9, 7, 15, {3, 3}, {1, 1}, {1, 1}},
    {"3x3 signed", 2, 5, 8, 9, 17, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, Values::signed_},
    {"more than a tile", 1, 2, 23, 19, 16, {3, 3}, {1, 1}, {1, 1}},
    {"more than a chunk", 1, 65, 5, 4, 3, {2, 3}},
    {"5x3 stride 2x1", 2, 4, 13, 9, 20, {5, 3}, {2, 1}, {2, 0}},
    {"dilation 2x3", 1, 3, 11, 13, 9, {3, 3}, {1, 1}, {2, 1}, {2, 3}},
    {"4 groups", 2, 12, 6, 7, 20, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 4, Values::signed_, true},
    {"depthwise", 2, 33, 7, 7, 33, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 33},
    {"dark images", 4, 3, 6, 5, 18, {3, 3}, {1, 1}, {0, 0}, {1, 1}, 1, Values::dark},
    {"no output position", 2, 3, 2, 2, 4, {3, 3}},
    {"no image", 0, 3, 5, 5, 4, {3, 3}},
};

struct Inputs {
  Layer layer;
  std::vector<float> x, weight;
  std::int64_t stride[4];

  Inputs(const Layer& given, unsigned seed) : layer(given) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const std::int64_t plane = layer.height * layer.width;
    x.resize(static_cast<std::size_t>(layer.images * layer.inputs * plane));
    for (std::size_t k = 0; k < x.size(); ++k) {
      const float value = normal(random);
      const auto image = static_cast<std::int64_t>(k) / (layer.inputs * plane);
      x[k] = layer.values == Values::signed_ ? value : std::max(value, 0.0f);
      if (layer.values == Values::dark && image % 2 == 0) x[k] = 0.0f;
    }
    weight.resize(static_cast<std::size_t>(layer.outputs * layer.weights()));
    for (float& value : weight) value = normal(random);
    weight[0] = 0.0f;
    const std::int64_t rows[4] = {layer.inputs * plane, plane, layer.width, 1};
    const std::int64_t last[4] = {layer.inputs * plane, 1, layer.width * layer.inputs,
                                  layer.inputs};
    std::copy_n(layer.channels_last ? last : rows, 4, stride);
  }

  SensitivityProblem problem(Aggregate aggregate, float* sensitivity) const {
    const Layer& l = layer;
    SensitivityProblem p{
        l.images,      l.inputs,    l.height,    l.width,      l.outputs,    l.kernel[0],
        l.kernel[1],   l.stride[0], l.stride[1], l.padding[0], l.padding[1], l.dilation[0],
        l.dilation[1], l.groups,    aggregate,   x.data(),     {},           weight.data(),
        sensitivity};
    std::copy_n(stride, 4, p.x_stride);
    return p;
  }

  // The input value that a weight position reads at an output position, zero in the padding.
  double value(std::int64_t image, std::int64_t output, std::int64_t f, std::int64_t row,
               std::int64_t column) const {
    const std::int64_t taps = layer.kernel[0] * layer.kernel[1];
    const std::int64_t group = output / (layer.outputs / layer.groups);
    const std::int64_t channel = group * (layer.inputs / layer.groups) + f / taps;
    const std::int64_t y =
        row * layer.stride[0] - layer.padding[0] + f % taps / layer.kernel[1] * layer.dilation[0];
    const std::int64_t c =
        column * layer.stride[1] - layer.padding[1] + f % layer.kernel[1] * layer.dilation[1];
    if (y < 0 || y >= layer.height || c < 0 || c >= layer.width) return 0.0;
    return x[static_cast<std::size_t>(image * stride[0] + channel * stride[1] + y * stride[2] +
                                      c * stride[3])];
  }
};

std::vector<double> oracle(const Inputs& in, Aggregate aggregate) {
  const Layer& l = in.layer;
  std::vector<double> best(in.weight.size(), 0.0);
  const std::int64_t positions = l.out(0) * l.out(1);
  for (std::int64_t n = 0; n < l.images && positions > 0; ++n) {
    for (std::int64_t o = 0; o < l.outputs; ++o) {
      for (const double part : {1.0, -1.0}) {
        std::vector<double> found(static_cast<std::size_t>(l.weights()), 0.0);
        for (std::int64_t p = 0; p < positions; ++p) {
          double sum[2] = {0.0, 0.0};
          std::vector<double> product(found.size());
          for (std::int64_t f = 0; f < l.weights(); ++f) {
            const double a = std::max(part * in.value(n, o, f, p / l.out(1), p % l.out(1)), 0.0);
            const double w = in.weight[static_cast<std::size_t>(o * l.weights() + f)];
            product[static_cast<std::size_t>(f)] = std::abs(w) * a;
            sum[w < 0] += std::abs(w) * a;
          }
          for (std::int64_t f = 0; f < l.weights(); ++f) {
            const auto at = static_cast<std::size_t>(f);
            const double total = sum[in.weight[static_cast<std::size_t>(o * l.weights() + f)] < 0];
            const double share =
                total > causalprune::kSmallestDenominator ? product[at] / total : 0.0;
            if (aggregate == Aggregate::max) found[at] = std::max(found[at], share);
            if (aggregate == Aggregate::mean) found[at] += share / static_cast<double>(positions);
          }
        }
        for (std::int64_t f = 0; f < l.weights(); ++f) {
          double& to = best[static_cast<std::size_t>(o * l.weights() + f)];
          to = std::max(to, found[static_cast<std::size_t>(f)]);
        }
      }
    }
  }
  return best;
}

std::vector<float> run(const Inputs& in, Aggregate aggregate, Isa isa, int threads) {
  std::vector<float> found(in.weight.size(), std::numeric_limits<float>::quiet_NaN());
  causalprune::relative_sensitivity(in.problem(aggregate, found.data()), isa, threads);
  return found;
}

// ---- checks -----------------------------------------------------------------------------------

constexpr Aggregate kAggregates[] = {Aggregate::mean, Aggregate::max};

const char* name_of(Aggregate aggregate) { return aggregate == Aggregate::max ? "max" : "mean"; }

void check_layers() {
  unsigned seed = 1;
  for (const Layer& layer : kLayers) {
    const Inputs inputs(layer, seed++);
    for (const Aggregate aggregate : kAggregates) {
      const std::vector<double> want = oracle(inputs, aggregate);
      for (const Isa isa : causalprune::available_isas()) {
        const std::vector<float> got = run(inputs, aggregate, isa, 1);
        double worst = 0.0;
        for (std::size_t k = 0; k < want.size(); ++k) {
          const double off = std::abs(got[k] - want[k]) / std::max(want[k], 1e-12);
          worst = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(worst, off);
        }
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
