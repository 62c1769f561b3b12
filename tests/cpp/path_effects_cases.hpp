// Layers, inputs in memory and the brute-force oracle of test_path_effects.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/path_effects.hpp"

namespace cases {

using causalprune::Activation;
using causalprune::Isa;
using causalprune::PathEffectsProblem;

// ---- layers to try ----------------------------------------------------------------------------

// Shuffled: channels innermost (channels_last). Gaps: every axis skips elements. Expanded: all
// images and all rows are one row in memory (x only).
enum class Memory { dense, channels_last, gaps, expanded };

enum class Values { rectified, signed_, mostly_zero };

struct Options {
  std::int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
  std::int64_t groups = 1;
  Memory memory = Memory::dense;
  Values values = Values::rectified;
};

struct Layer : Options {
  const char* name;
  std::int64_t images, inputs, height, width, outputs;

  constexpr Layer(const char* name_, std::int64_t images_, std::int64_t inputs_,
                  std::int64_t height_, std::int64_t width_, std::int64_t outputs_,
                  Options options = {})
      : Options(options),
        name(name_),
        images(images_),
        inputs(inputs_),
        height(height_),
        width(width_),
        outputs(outputs_) {}

  std::int64_t out(int axis) const {
    const std::int64_t size = axis == 0 ? height : width;
    const std::int64_t room = size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
    return room < 0 ? 0 : room / stride[axis] + 1;
  }
};

const Layer kLayers[] = {
    {"linear 1x1", 1, 1, 1, 1, 1},
    {"linear 15 to 33", 7, 15, 1, 1, 33},
    {"linear 97 to 15, signed", 5, 97, 1, 1, 15, {.values = Values::signed_}},
    {"linear 33 to 97, mostly zero", 40, 33, 1, 1, 97, {.values = Values::mostly_zero}},
    {"linear 130 to 17: inputs in two chunks", 3, 130, 1, 1, 17},
    {"linear 3 to 70: outputs in chunks", 4, 3, 1, 1, 70},
    {"linear, 300 images", 300, 5, 1, 1, 5, {.values = Values::signed_}},
    {"tokens 10x8 to 20", 10, 8, 9, 1, 20, {.memory = Memory::channels_last}},
    {"tokens with gaps", 3, 7, 21, 1, 18, {.memory = Memory::gaps, .values = Values::signed_}},
    {"1x1", 2, 6, 5, 7, 33},
    {"1x1, wide: several tiles", 1, 3, 3, 150, 35, {.values = Values::signed_}},
    {"1x1, tall, one column", 2, 5, 67, 1, 16, {.memory = Memory::gaps}},
    {"1x1, channels last", 2, 17, 6, 5, 31, {.memory = Memory::channels_last}},
    {"1x1, rows with gaps", 2, 4, 6, 9, 15, {.memory = Memory::gaps, .values = Values::signed_}},
    {"1x1, stride 2", 2, 5, 9, 11, 17, {.stride = {2, 2}}},
    {"1x1, stride 3x2, padding 1x2", 2, 3, 7, 8, 5, {.stride = {3, 2}, .padding = {1, 2}}},
    {"1x1, padding", 3, 4, 2, 2, 19, {.padding = {1, 1}}},
    {"1x1, 3 groups", 2, 9, 4, 5, 51, {.groups = 3}},
    {"1x1, expanded", 3, 5, 6, 7, 17, {.memory = Memory::expanded, .values = Values::signed_}},
    {"3x3", 2, 5, 9, 10, 33, {.kernel = {3, 3}, .padding = {1, 1}}},
    {"3x3, signed, no padding", 3, 3, 5, 23, 16, {.kernel = {3, 3}, .values = Values::signed_}},
    {"3x3, wide: several tiles", 1, 2, 11, 131, 15, {.kernel = {3, 3}, .padding = {1, 1}}},
    {"3x3, 1x1 image", 9, 4, 1, 1, 18, {.kernel = {3, 3}, .padding = {1, 1}}},
    {"3x3, stride 2", 2, 4, 11, 12, 20, {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1}}},
    {"3x3, dilation 2x3",
     2,
     3,
     12,
     13,
     7,
     {.kernel = {3, 3}, .padding = {2, 0}, .dilation = {2, 3}}},
    {"3x3, depthwise", 2, 19, 6, 7, 19, {.kernel = {3, 3}, .padding = {1, 1}, .groups = 19}},
    {"3x3, depthwise times 2", 1, 5, 8, 8, 10, {.kernel = {3, 3}, .groups = 5}},
    {"3x3, 2 groups", 2, 6, 7, 7, 34, {.kernel = {3, 3}, .padding = {1, 1}, .groups = 2}},
    {"3x3, channels last", 2, 7, 8, 9, 17, {.kernel = {3, 3}, .memory = Memory::channels_last}},
    {"3x3, gaps", 2, 3, 7, 9, 5, {.kernel = {3, 3}, .padding = {1, 1}, .memory = Memory::gaps}},
    {"3x3, expanded", 2, 3, 6, 8, 16, {.kernel = {3, 3}, .memory = Memory::expanded}},
    {"5x5", 2, 3, 9, 9, 17, {.kernel = {5, 5}, .padding = {2, 2}, .values = Values::signed_}},
    {"7x7, stride 2", 1, 3, 21, 22, 16, {.kernel = {7, 7}, .stride = {2, 2}, .padding = {3, 3}}},
    {"1x3", 2, 4, 5, 18, 15, {.kernel = {1, 3}, .padding = {0, 1}}},
    {"3x1, stride 1x3", 2, 4, 9, 10, 15, {.kernel = {3, 1}, .stride = {1, 3}, .padding = {2, 0}}},
    {"2x2, stride 2, 65 columns", 1, 2, 4, 130, 6, {.kernel = {2, 2}, .stride = {2, 2}}},
    {"3x3, all of it padding", 2, 2, 1, 1, 3, {.kernel = {3, 3}, .padding = {4, 4}}},
    {"no image", 0, 3, 4, 4, 5, {.kernel = {3, 3}}},
    {"no input", 2, 0, 4, 4, 5},
    {"no output channel", 2, 3, 4, 4, 0},
    {"no output position", 2, 3, 2, 2, 5, {.kernel = {3, 3}}},
    {"no input row, padded", 2, 3, 0, 4, 5, {.padding = {1, 0}}},
    {"no input column, padded", 2, 3, 4, 0, 5, {.padding = {0, 1}}},
};

constexpr Activation kActivations[] = {Activation::identity, Activation::relu, Activation::gelu,
                                       Activation::silu, Activation::hardswish};
constexpr const char* kActivationNames[] = {"identity", "relu", "gelu", "silu", "hardswish"};

// ---- inputs in memory -------------------------------------------------------------------------

// A tensor in exactly as much memory as it needs, so that a sanitizer sees any read outside.
struct Tensor {
  std::int64_t size[4], stride[4];
  std::vector<float> data;

  Tensor(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d, Memory memory)
      : size{a, b, c, d} {
    const std::int64_t gap = memory == Memory::gaps ? 2 : 1;
    const bool last = memory == Memory::channels_last;
    stride[3] = last ? b : gap;
    stride[2] = stride[3] * d + gap - 1;
    stride[1] = last ? 1 : stride[2] * c + gap - 1;
    stride[0] = last ? stride[2] * c : stride[1] * b + gap - 1;
    if (memory == Memory::expanded) {
      stride[0] = stride[2] = 0;
      stride[1] = d;
    }
    std::int64_t last_element = 0;
    for (int k = 0; k < 4; ++k) last_element += (size[k] - 1) * stride[k];
    const bool empty = a == 0 || b == 0 || c == 0 || d == 0;
    data.resize(static_cast<std::size_t>(empty ? 0 : last_element + 1));
    // What lies in the gaps is nobody's business.
    if (memory == Memory::gaps) {
      std::fill(data.begin(), data.end(), std::numeric_limits<float>::quiet_NaN());
    }
  }

  float& at(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
    return data[static_cast<std::size_t>(a * stride[0] + b * stride[1] + c * stride[2] +
                                         d * stride[3])];
  }
  float at(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
    return const_cast<Tensor*>(this)->at(a, b, c, d);
  }

  void fill(float scale, Values values, std::mt19937& random) {
    std::normal_distribution<float> draw(0.0f, scale);
    std::uniform_real_distribution<float> chance(0.0f, 1.0f);
    for (std::int64_t a = 0; a < size[0]; ++a) {
      for (std::int64_t b = 0; b < size[1]; ++b) {
        for (std::int64_t c = 0; c < size[2]; ++c) {
          for (std::int64_t d = 0; d < size[3]; ++d) {
            float v = draw(random);
            if (values == Values::rectified) v = std::max(v, 0.0f);
            if (values == Values::mostly_zero && chance(random) < 0.95f) v = 0.0f;
            at(a, b, c, d) = v;
          }
        }
      }
    }
  }
};

struct Inputs {
  Layer layer;
  Tensor x, weight, pre, grad;

  explicit Inputs(const Layer& l, unsigned seed)
      : layer(l),
        x(l.images, l.inputs, l.height, l.width, l.memory),
        weight(l.outputs, l.inputs / l.groups, l.kernel[0], l.kernel[1], Memory::dense),
        pre(l.images, l.outputs, l.out(0), l.out(1), memory_of_outputs()),
        grad(l.images, l.outputs, l.out(0), l.out(1), memory_of_outputs()) {
    std::mt19937 random(seed);
    x.fill(1.0f, l.values, random);
    weight.fill(0.5f, Values::signed_, random);
    pre.fill(2.0f, Values::signed_, random);
    grad.fill(1.0f, Values::signed_, random);
  }

  Memory memory_of_outputs() const {
    return layer.memory == Memory::expanded ? Memory::dense : layer.memory;
  }

  PathEffectsProblem problem(Activation activation, bool weighted) const {
    PathEffectsProblem p{};
    p.n_images = layer.images;
    p.n_inputs = layer.inputs;
    p.height = layer.height;
    p.width = layer.width;
    p.n_outputs = layer.outputs;
    p.out_height = layer.out(0);
    p.out_width = layer.out(1);
    p.kernel_height = layer.kernel[0];
    p.kernel_width = layer.kernel[1];
    p.stride_height = layer.stride[0];
    p.stride_width = layer.stride[1];
    p.padding_height = layer.padding[0];
    p.padding_width = layer.padding[1];
    p.dilation_height = layer.dilation[0];
    p.dilation_width = layer.dilation[1];
    p.groups = layer.groups;
    p.activation = activation;
    p.x = x.data.data();
    p.weight = weight.data.data();
    p.pre = pre.data.data();
    p.grad = weighted ? grad.data.data() : nullptr;
    for (int k = 0; k < 4; ++k) {
      p.x_stride[k] = x.stride[k];
      p.pre_stride[k] = pre.stride[k];
      p.grad_stride[k] = weighted ? grad.stride[k] : 0;
    }
    return p;
  }
};

struct Results {
  std::vector<double> edge, unit;

  explicit Results(const Layer& l, std::int64_t n_statistics = 4)
      : edge(static_cast<std::size_t>(l.outputs * (l.inputs / l.groups) * n_statistics), -1.0),
        unit(static_cast<std::size_t>(l.images * l.inputs), -1.0) {}
};

inline Results run(const Inputs& inputs, Activation activation, bool weighted, Isa isa, int threads,
                   std::int64_t n_statistics = 4) {
  Results results(inputs.layer, n_statistics);
  PathEffectsProblem p = inputs.problem(activation, weighted);
  p.n_statistics = n_statistics;
  p.edge = results.edge.data();
  p.unit = results.unit.data();
  causalprune::path_effects(p, isa, threads);
  return results;
}

// ---- the oracle -------------------------------------------------------------------------------

inline double phi(Activation activation, double v) {
  switch (activation) {
    case Activation::identity: return v;
    case Activation::relu: return std::max(v, 0.0);
    case Activation::gelu: return 0.5 * v * (1.0 + std::erf(v / std::sqrt(2.0)));
    case Activation::silu: return v / (1.0 + std::exp(-v));
    case Activation::hardswish: return v * std::clamp(v + 3.0, 0.0, 6.0) / 6.0;
  }
  return 0.0;
}

// What is expected, and with it what each sum would be without cancellation.
struct Expected {
  Results value, scale;

  explicit Expected(const Layer& l) : value(l), scale(l) {
    for (Results* r : {&value, &scale}) {
      std::fill(r->edge.begin(), r->edge.end(), 0.0);
      std::fill(r->unit.begin(), r->unit.end(), 0.0);
    }
  }

  void take(std::size_t edge_at, std::size_t unit_at, double d, double grad) {
    const double statistics[4] = {d, std::abs(d), d * d, grad * d};
    for (std::size_t k = 0; k < 4; ++k) {
      value.edge[edge_at * 4 + k] += statistics[k];
      scale.edge[edge_at * 4 + k] += std::abs(statistics[k]);
    }
    value.unit[unit_at] += grad * d;
    scale.unit[unit_at] += std::abs(grad * d);
  }
};

inline double contribution(const Inputs& in, std::int64_t n, std::int64_t channel,
                           std::int64_t output, std::int64_t inner, std::int64_t row,
                           std::int64_t column) {
  const Layer& l = in.layer;
  double c = 0.0;
  for (std::int64_t ky = 0; ky < l.kernel[0]; ++ky) {
    for (std::int64_t kx = 0; kx < l.kernel[1]; ++kx) {
      const std::int64_t y = row * l.stride[0] - l.padding[0] + ky * l.dilation[0];
      const std::int64_t x = column * l.stride[1] - l.padding[1] + kx * l.dilation[1];
      if (y < 0 || y >= l.height || x < 0 || x >= l.width) continue;
      c += static_cast<double>(in.weight.at(output, inner, ky, kx)) * in.x.at(n, channel, y, x);
    }
  }
  return c;
}

// All activations, without and with grad, from one pass: [activation * 2 + weighted].
inline std::vector<Expected> oracle(const Inputs& in) {
  const Layer& l = in.layer;
  std::vector<Expected> expected(10, Expected(l));
  const std::int64_t inner_count = l.inputs / l.groups, each = l.outputs / l.groups;
  for (std::int64_t j = 0; j < l.outputs; ++j) {
    for (std::int64_t inner = 0; inner < inner_count; ++inner) {
      const std::int64_t i = j / each * inner_count + inner;
      for (std::int64_t n = 0; n < l.images; ++n) {
        for (std::int64_t row = 0; row < l.out(0); ++row) {
          for (std::int64_t column = 0; column < l.out(1); ++column) {
            const double c = contribution(in, n, i, j, inner, row, column);
            const double pre = in.pre.at(n, j, row, column);
            const double grad = in.grad.at(n, j, row, column);
            for (std::size_t a = 0; a < 5; ++a) {
              const double d = phi(kActivations[a], pre - c) - phi(kActivations[a], pre);
              const auto edge_at = static_cast<std::size_t>(j * inner_count + inner);
              const auto unit_at = static_cast<std::size_t>(n * l.inputs + i);
              expected[a * 2].take(edge_at, unit_at, d, 1.0);
              expected[a * 2 + 1].take(edge_at, unit_at, d, grad);
            }
          }
        }
      }
    }
  }
  return expected;
}

inline double largest(const std::vector<double>& values, std::size_t first, std::size_t step) {
  double found = 0.0;
  for (std::size_t k = first; k < values.size(); k += step) found = std::max(found, values[k]);
  return found;
}

// The documented tolerance: 1e-5 of each sum's terms without their signs. Beside it 1e-6 of the
// layer's largest, for edges of nearly no weight, where phi(pre - c) - phi(pre) cancels.
inline bool near(const std::vector<double>& got, const std::vector<double>& value,
                 const std::vector<double>& scale, std::size_t statistics, std::string& where) {
  for (std::size_t k = 0; k < got.size(); ++k) {
    const double bound = 1e-5 * scale[k] + 1e-6 * largest(scale, k % statistics, statistics);
    if (!(std::abs(got[k] - value[k]) <= bound)) {
      where = " at " + std::to_string(k) + ": got " + std::to_string(got[k]) + ", expected " +
              std::to_string(value[k]) + " within " + std::to_string(bound);
      return false;
    }
  }
  return true;
}

}  // namespace cases
