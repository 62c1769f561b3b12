// path_effects on every instruction set this machine has, against a brute-force oracle in double
// precision. No framework: one line for each check; the exit status tells whether all of them held.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__aarch64__)
#define CAUSALPRUNE_ISA_NEON
#endif
#include "common/vec16f.hpp"
#include "kernels/path_effects.hpp"

namespace {

namespace lanes16 = causalprune::CAUSALPRUNE_ISA_NAMESPACE;
using causalprune::Activation;
using causalprune::Isa;
using causalprune::PathEffectsProblem;

int passed = 0, failed = 0;

void check(bool holds, const std::string& what) {
  std::printf("%s  %s\n", holds ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  ++(holds ? passed : failed);
}

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

  explicit Results(const Layer& l)
      : edge(static_cast<std::size_t>(l.outputs * (l.inputs / l.groups) * 4), -1.0),
        unit(static_cast<std::size_t>(l.images * l.inputs), -1.0) {}
};

Results run(const Inputs& inputs, Activation activation, bool weighted, Isa isa, int threads) {
  Results results(inputs.layer);
  PathEffectsProblem p = inputs.problem(activation, weighted);
  p.edge = results.edge.data();
  p.unit = results.unit.data();
  causalprune::path_effects(p, isa, threads);
  return results;
}

// ---- the oracle -------------------------------------------------------------------------------

double phi(Activation activation, double v) {
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

double contribution(const Inputs& in, std::int64_t n, std::int64_t channel, std::int64_t output,
                    std::int64_t inner, std::int64_t row, std::int64_t column) {
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
std::vector<Expected> oracle(const Inputs& in) {
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

double largest(const std::vector<double>& values, std::size_t first, std::size_t step) {
  double found = 0.0;
  for (std::size_t k = first; k < values.size(); k += step) found = std::max(found, values[k]);
  return found;
}

// The documented tolerance: 1e-5 of each sum's terms without their signs. Beside it 1e-6 of the
// layer's largest, for edges of nearly no weight, where phi(pre - c) - phi(pre) cancels.
bool near(const std::vector<double>& got, const std::vector<double>& value,
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

void check_layers() {
  unsigned seed = 1;
  for (const Layer& layer : kLayers) {
    const Inputs inputs(layer, seed++);
    const std::vector<Expected> expected = oracle(inputs);
    for (const Isa isa : causalprune::available_isas()) {
      for (std::size_t a = 0; a < 5; ++a) {
        for (const bool weighted : {false, true}) {
          const Expected& want = expected[a * 2 + (weighted ? 1 : 0)];
          const Results got = run(inputs, kActivations[a], weighted, isa, 1);
          std::string where;
          const bool holds = near(got.edge, want.value.edge, want.scale.edge, 4, where) &&
                             near(got.unit, want.value.unit, want.scale.unit, 1, where);
          check(holds, std::string(causalprune::isa_name(isa)) + ": " + layer.name + ", " +
                           kActivationNames[a] + (weighted ? ", grad" : "") + where);
        }
      }
    }
  }
}

// ---- the same bits for any number of threads --------------------------------------------------

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// Each is more than 2^20 multiply-adds, below which no thread is started.
const Layer kThreadedLayers[] = {
    {"3x3", 4, 20, 14, 14, 40, {.kernel = {3, 3}, .padding = {1, 1}}},
    {"few inputs, outputs in chunks", 6, 3, 16, 16, 90, {.kernel = {3, 3}}},
    {"groups", 3, 24, 12, 12, 96, {.kernel = {3, 3}, .groups = 3}},
    {"more than 128 inputs", 3, 300, 6, 6, 50},
    {"more than 256 outputs", 3, 130, 3, 3, 600, {.values = Values::signed_}},
    {"linear, many outputs", 20, 257, 1, 1, 1100, {.values = Values::signed_}},
};

void check_threads() {
  unsigned seed = 100;
  for (const Layer& layer : kThreadedLayers) {
    const Inputs inputs(layer, seed++);
    for (const Isa isa : causalprune::available_isas()) {
      for (const Activation activation : {Activation::relu, Activation::silu}) {
        const Results one = run(inputs, activation, true, isa, 1);
        for (const int threads : {2, 5}) {
          const Results many = run(inputs, activation, true, isa, threads);
          check(same_bits(one.edge, many.edge) && same_bits(one.unit, many.unit),
                std::string(causalprune::isa_name(isa)) + ": same bits on " +
                    std::to_string(threads) + " threads, " + layer.name + ", " +
                    kActivationNames[static_cast<int>(activation)]);
        }
      }
    }
  }
}

// ---- errors -----------------------------------------------------------------------------------

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

constexpr Layer kRefusedLayer = {"refused", 2, 4, 6, 7, 6, {.kernel = {3, 3}, .padding = {1, 1}}};

void check_geometry_refused() {
  const Inputs inputs(kRefusedLayer, 7);
  const auto with = [&](const std::function<void(PathEffectsProblem&)>& change) {
    return [&inputs, change] {
      Results results(inputs.layer);
      PathEffectsProblem p = inputs.problem(Activation::relu, true);
      p.edge = results.edge.data();
      p.unit = results.unit.data();
      change(p);
      causalprune::path_effects(p, Isa::scalar, 1);
    };
  };
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  check_refused("no group", {"groups", "0"}, with([](auto& p) { p.groups = 0; }));
  check_refused("groups divide neither", {"groups", "5"}, with([](auto& p) { p.groups = 5; }));
  check_refused("groups divide the inputs alone", {"groups", "4"},
                with([](auto& p) { p.groups = 4; }));
  check_refused("stride 0", {"stride", "0"}, with([](auto& p) { p.stride_height = 0; }));
  check_refused("stride below 0", {"stride", "-2"}, with([](auto& p) { p.stride_width = -2; }));
  check_refused("padding below 0", {"padding", "-1"}, with([](auto& p) { p.padding_width = -1; }));
  check_refused("dilation 0", {"dilation", "0"}, with([](auto& p) { p.dilation_height = 0; }));
  check_refused("empty kernel", {"weight", "0"}, with([](auto& p) { p.kernel_width = 0; }));
  check_refused("height of pre", {"pre", "height", "6", "5"},
                with([](auto& p) { p.out_height = 5; }));
  check_refused("width of pre", {"pre", "width", "7", "8"}, with([](auto& p) { p.out_width = 8; }));
  check_refused("padding beyond 64 bits", {"padding"},
                with([](auto& p) { p.padding_height = kHuge; }));
  check_refused("dilation beyond 64 bits", {"dilation"},
                with([](auto& p) { p.dilation_width = kHuge; }));
  check_refused("stride beyond 64 bits", {"stride"},
                with([](auto& p) { p.stride_height = kHuge; }));
  // One output position, from a kernel whose reach is all padding: a workspace beyond 64 bits.
  check_refused("reach beyond 64 bits", {"64 bits"}, with([](auto& p) {
                  p.dilation_height = p.dilation_width = std::int64_t{2147483647};
                  p.padding_height = p.padding_width = std::int64_t{2147483647};
                  p.out_height = p.height;
                  p.out_width = p.width;
                }));
}

void check_values_refused() {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::pair<const char*, Tensor Inputs::*> arguments[] = {{"x", &Inputs::x},
                                                                {"weight", &Inputs::weight},
                                                                {"pre", &Inputs::pre},
                                                                {"grad", &Inputs::grad}};
  Layer pointwise = kRefusedLayer, channels_last = kRefusedLayer;
  pointwise.kernel[0] = pointwise.kernel[1] = 1;
  pointwise.padding[0] = pointwise.padding[1] = 0;
  channels_last.memory = Memory::channels_last;
  for (const Layer& layer : {kRefusedLayer, pointwise, channels_last}) {
    for (const auto& [name, tensor] : arguments) {
      for (const float bad : {kNan, kInfinity, -kInfinity}) {
        for (const Isa isa : causalprune::available_isas()) {
          Inputs inputs(layer, 8);
          Tensor& target = inputs.*tensor;
          std::int64_t at[4];
          std::string index = "[";
          for (int k = 0; k < 4; ++k) {
            at[k] = target.size[k] - 1;
            index += std::to_string(at[k]) + (k < 3 ? ", " : "]");
          }
          target.at(at[0], at[1], at[2], at[3]) = bad;
          check_refused(causalprune::isa_name(isa),
                        {std::string(name) + ": expected finite", index},
                        [&] { run(inputs, Activation::gelu, true, isa, 1); });
        }
      }
    }
  }
}

void check_names() {
  for (int k = 0; k < 5; ++k) {
    check(causalprune::activation_by_name(kActivationNames[k]) == kActivations[k],
          std::string("activation_by_name ") + kActivationNames[k]);
  }
  check_refused("activation", {"activation", "relu", "hardswish", "'tanh'"},
                [] { causalprune::activation_by_name("tanh"); });
  for (const Isa isa : causalprune::available_isas()) {
    check(causalprune::isa_by_name(causalprune::isa_name(isa)) == isa,
          std::string("isa_by_name ") + causalprune::isa_name(isa));
  }
  check_refused("instruction set", {"isa", "scalar", "'sse9'"},
                [] { causalprune::isa_by_name("sse9"); });
}

// ---- sixteen lanes ----------------------------------------------------------------------------

void check_exp() {
  double worst = 0.0;
  for (float first = -86.5f; first < 87.0f; first += 0.37f) {
    float lane[16];
    for (int k = 0; k < 16; ++k) lane[k] = first + 0.0231f * static_cast<float>(k);
    float got[16];
    lanes16::store(got, lanes16::exp(lanes16::load(lane)));
    for (int k = 0; k < 16; ++k) {
      const double want = std::exp(static_cast<double>(lane[k]));
      worst = std::max(worst, std::abs(got[k] - want) / want);
    }
  }
  check(worst < 3e-7, "exp within 3e-7, got " + std::to_string(worst * 1e7) + "e-7");
  float beyond[16];
  lanes16::store(beyond, lanes16::exp(lanes16::broadcast(1000.0f)));
  check(std::isfinite(beyond[0]) && beyond[0] > 1e38f, "exp stays finite above its range");
  lanes16::store(beyond, lanes16::exp(lanes16::broadcast(-1000.0f)));
  check(beyond[0] > 0.0f && beyond[0] < 1e-37f, "exp stays positive below its range");
}

void check_compress() {
  for (std::int32_t n = 0; n <= 50; ++n) {
    std::vector<float> x(static_cast<std::size_t>(n));
    std::vector<float> want_value;
    std::vector<std::int32_t> want_position;
    for (std::int32_t k = 0; k < n; ++k) {
      const float v = k % 3 == 0 ? 0.0f : k % 7 == 6 ? -0.0f : static_cast<float>(k);
      x[static_cast<std::size_t>(k)] = v;
      if (v != 0.0f) {
        want_value.push_back(v);
        want_position.push_back(100 + k);
      }
    }
    std::vector<float> value(static_cast<std::size_t>(n + 16));
    std::vector<std::int32_t> position(value.size());
    lanes16::Signs signs;
    const auto kept = static_cast<std::size_t>(
        lanes16::compress_nonzero(x.data(), n, 100, position.data(), value.data(), signs));
    const bool holds = kept == want_value.size() && signs.finite && !signs.negative &&
                       std::equal(want_value.begin(), want_value.end(), value.begin()) &&
                       std::equal(want_position.begin(), want_position.end(), position.begin());
    if (!holds || n % 10 == 0) check(holds, "compress_nonzero of " + std::to_string(n));
  }
  float value[32];
  std::int32_t position[32];
  const float negative[3] = {0.0f, -1.0f, 2.0f};
  const float broken[3] = {1.0f, std::numeric_limits<float>::infinity(), 0.0f};
  lanes16::Signs signs;
  lanes16::compress_nonzero(negative, 3, 0, position, value, signs);
  check(signs.negative && signs.finite, "compress_nonzero sees a negative value");
  lanes16::compress_nonzero(broken, 3, 0, position, value, signs);
  check(!signs.finite, "compress_nonzero sees an infinite value");
}

void check_transpose() {
  float from[16][16];
  std::iota(&from[0][0], &from[0][0] + 256, 0.0f);
  lanes16::vec16f rows[16];
  for (int k = 0; k < 16; ++k) rows[k] = lanes16::load(from[k]);
  lanes16::transpose(rows);
  bool holds = true;
  for (int k = 0; k < 16; ++k) {
    float to[16];
    lanes16::store(to, rows[k]);
    for (int lane = 0; lane < 16; ++lane) holds &= to[lane] == from[lane][k];
  }
  check(holds, "transpose");
  for (int n = 1; n <= 16; ++n) {
    const std::vector<float> few(from[1], from[1] + n);
    float to[16];
    lanes16::store(to, lanes16::load_first(few.data(), n));
    bool each = true;
    for (int lane = 0; lane < 16; ++lane) each &= to[lane] == (lane < n ? from[1][lane] : 0.0f);
    if (!each || n % 5 == 1) check(each, "load_first " + std::to_string(n));
  }
  check(lanes16::sum_lanes(lanes16::load(from[0])) == 120.0f, "sum_lanes");
}

}  // namespace

int main() {
  check_exp();
  check_compress();
  check_transpose();
  check_names();
  check_geometry_refused();
  check_values_refused();
  check_layers();
  check_threads();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
