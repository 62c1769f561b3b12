// Layers of every kind with drawn inputs, and the definition of relative_sensitivity in double
// precision by brute force: for the tests of the CPU kernels and of the CUDA kernel's arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/relative_sensitivity.hpp"

using causalprune::Aggregate;
using causalprune::Isa;
using causalprune::SensitivityProblem;

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

inline const Layer kLayers[] = {
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

inline std::vector<double> oracle(const Inputs& in, Aggregate aggregate) {
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

constexpr Aggregate kAggregates[] = {Aggregate::mean, Aggregate::max};

inline const char* name_of(Aggregate aggregate) {
  return aggregate == Aggregate::max ? "max" : "mean";
}

// The largest relative error; infinite where anything is not a number.
inline double worst_error(const std::vector<float>& got, const std::vector<double>& want) {
  double worst = 0.0;
  for (std::size_t k = 0; k < want.size(); ++k) {
    const double off = std::abs(got[k] - want[k]) / std::max(want[k], 1e-12);
    worst = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(worst, off);
  }
  return worst;
}
