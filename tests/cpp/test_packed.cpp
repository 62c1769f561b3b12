// Packed convolutions on every instruction set this machine has, against the definition in double
// precision. One line for each check; the exit status tells whether all of them held.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "checks.hpp"
#include "common/aligned_array.hpp"
#include "kernels/packed_convolution.hpp"

namespace {

using causalprune::Isa;
using causalprune::PackedActivation;
using causalprune::PackedBlocking;
using causalprune::PackedConvolution;
using causalprune::PackedConvolutionProblem;
using causalprune::PackedLayout;
using causalprune::PackedView;

struct Layer {
  const char* name;
  std::int64_t images, inputs, outputs, height, width, kernel, stride, padding, dilation, groups;
  std::int64_t lane_images, lane_rows, lane_columns;
  double density;
};

constexpr Layer kLayers[] = {
    {"3x3", 16, 5, 7, 9, 11, 3, 1, 1, 1, 1, 16, 1, 1, 0.3},
    {"3x3, 17 images", 17, 5, 7, 8, 8, 3, 1, 1, 1, 1, 16, 1, 1, 0.3},
    {"1x1, wide", 3, 33, 15, 6, 33, 1, 1, 0, 1, 1, 4, 2, 2, 0.2},
    {"3x3, strips 4 x 4", 1, 6, 9, 14, 14, 3, 1, 1, 1, 1, 1, 4, 4, 0.5},
    {"3x3, strips 2 x 1, stride 2", 9, 4, 8, 15, 9, 3, 2, 1, 1, 1, 8, 2, 1, 0.4},
    {"5x5, dilation 2", 2, 3, 5, 13, 17, 5, 1, 4, 2, 1, 4, 2, 2, 0.4},
    {"groups", 16, 6, 9, 7, 5, 3, 1, 1, 1, 3, 16, 1, 1, 1.0},
    {"depthwise, stride 3", 16, 8, 8, 10, 10, 3, 3, 1, 1, 8, 16, 1, 1, 1.0},
    {"no padding", 16, 3, 4, 12, 30, 3, 1, 0, 1, 1, 16, 1, 1, 0.1},
    {"all zero", 16, 3, 4, 5, 5, 3, 1, 1, 1, 1, 16, 1, 1, 0.0},
    {"28 wide", 16, 3, 4, 3, 28, 3, 1, 1, 1, 1, 16, 1, 1, 0.5},
};

// The values of a tensor, and what of a layout holds them.
struct Packed {
  PackedLayout layout;
  causalprune::AlignedArray<float> memory;

  explicit Packed(const PackedLayout& l)
      : layout(l), memory(causalprune::aligned_array<float>(l.floats())) {
    std::fill_n(memory.get(), l.floats(), -7.0f);
  }

  // Local row y and column x of a strip, halo included.
  float& at(std::int64_t image, std::int64_t channel, std::int64_t a, std::int64_t b,
            std::int64_t y, std::int64_t x) {
    const PackedLayout& l = layout;
    const std::int64_t lane = ((image % l.images) * l.rows + a) * l.columns + b;
    return memory[image / l.images * l.block_floats() + channel * l.channel_floats() +
                  l.interior() + y * l.row_floats() + x * causalprune::kPackedLanes + lane];
  }

  PackedView view() { return causalprune::view_of(layout, memory.get()); }
};

struct Case {
  Layer l;
  PackedConvolutionProblem p{};
  std::vector<float> x, weight, bias, residual;
  std::int64_t out_height, out_width, total_inputs, total_outputs;

  Case(const Layer& layer, unsigned seed, bool lists) : l(layer) {
    std::mt19937 draw(seed);
    std::normal_distribution<float> normal;
    const auto values = [&](std::int64_t n) {
      std::vector<float> v(static_cast<std::size_t>(n));
      for (float& each : v) each = normal(draw);
      return v;
    };
    const auto size = [&](std::int64_t n) {
      return (n + 2 * l.padding - l.dilation * (l.kernel - 1) - 1) / l.stride + 1;
    };
    out_height = size(l.height), out_width = size(l.width);
    total_inputs = l.inputs + (lists ? 3 : 0), total_outputs = l.outputs + (lists ? 2 : 0);
    const std::int64_t strip_h = (out_height + l.lane_rows - 1) / l.lane_rows;
    const std::int64_t strip_w = (out_width + l.lane_columns - 1) / l.lane_columns;
    const std::int64_t in_h = l.lane_rows > 1 ? l.stride * strip_h : l.height;
    const std::int64_t in_w = l.lane_columns > 1 ? l.stride * strip_w : l.width;
    const auto after = [&](std::int64_t out, std::int64_t in) {
      return std::max<std::int64_t>(
          0, (out - 1) * l.stride - l.padding + (l.kernel - 1) * l.dilation - (in - 1));
    };
    p.in = {l.images,
            total_inputs,
            l.height,
            l.width,
            l.lane_images,
            l.lane_rows,
            l.lane_columns,
            in_h,
            in_w,
            l.padding,
            after(strip_h, in_h),
            l.padding,
            after(strip_w, in_w)};
    p.out = {l.images,
             total_outputs,
             out_height,
             out_width,
             l.lane_images,
             l.lane_rows,
             l.lane_columns,
             strip_h,
             strip_w,
             1,
             2,
             0,
             1};
    p.kernel_height = p.kernel_width = l.kernel;
    p.stride_height = p.stride_width = l.stride;
    p.padding_height = p.padding_width = l.padding;
    p.dilation_height = p.dilation_width = l.dilation;
    p.groups = l.groups;
    std::vector<std::int32_t> from(static_cast<std::size_t>(total_inputs));
    std::vector<std::int32_t> to(static_cast<std::size_t>(total_outputs));
    std::iota(from.begin(), from.end(), 0), std::iota(to.begin(), to.end(), 0);
    if (lists)
      std::shuffle(from.begin(), from.end(), draw), std::shuffle(to.begin(), to.end(), draw);
    p.inputs.assign(from.begin(), from.begin() + l.inputs);
    p.outputs.assign(to.begin(), to.begin() + l.outputs);
    x = values(l.images * total_inputs * l.height * l.width);
    weight = values(l.outputs * l.inputs / l.groups * l.kernel * l.kernel);
    std::uniform_real_distribution<double> uniform;
    for (float& w : weight) {
      if (uniform(draw) >= l.density) w = 0.0f;
    }
    if (seed % 3 == 0) {  // a row without weights, and a channel that no row reads
      const std::int64_t taps = l.kernel * l.kernel, row = l.inputs / l.groups * taps;
      std::fill_n(weight.begin() + (l.outputs / 2) * row, row, 0.0f);
      for (std::int64_t o = 0; o < l.outputs; ++o) {
        std::fill_n(weight.begin() + o * row + row - taps, taps, 0.0f);
      }
    }
    bias = values(l.outputs);
    residual = values(l.images * total_outputs * out_height * out_width);
    p.weight = weight.data(), p.bias = bias.data();
  }

  float input(std::int64_t n, std::int64_t c, std::int64_t y, std::int64_t x_) const {
    if (y < 0 || x_ < 0 || y >= l.height || x_ >= l.width || n >= l.images) return 0.0f;
    return x[static_cast<std::size_t>(((n * total_inputs + c) * l.height + y) * l.width + x_)];
  }

  double expected(std::int64_t n, std::int64_t row, std::int64_t y, std::int64_t x_,
                  bool add_residual, double& size) const {
    const std::int64_t per_group = l.inputs / l.groups, group = row / (l.outputs / l.groups);
    double sum = bias[static_cast<std::size_t>(row)];
    size = std::abs(sum);
    for (std::int64_t i = 0; i < per_group; ++i) {
      for (std::int64_t ky = 0; ky < l.kernel; ++ky) {
        for (std::int64_t kx = 0; kx < l.kernel; ++kx) {
          const double w = weight[static_cast<std::size_t>(
              ((row * per_group + i) * l.kernel + ky) * l.kernel + kx)];
          const double term =
              w * input(n, p.inputs[static_cast<std::size_t>(group * per_group + i)],
                        y * l.stride - l.padding + ky * l.dilation,
                        x_ * l.stride - l.padding + kx * l.dilation);
          sum += term, size += std::abs(term);
        }
      }
    }
    if (add_residual) {
      const double r = residual[static_cast<std::size_t>(
          ((n * total_outputs + p.outputs[static_cast<std::size_t>(row)]) * out_height + y) *
              out_width +
          x_)];
      sum += r, size += std::abs(r);
    }
    return sum;
  }
};

double activated(PackedActivation activation, double v) {
  switch (activation) {
    case PackedActivation::relu: return std::max(v, 0.0);
    case PackedActivation::relu6: return std::clamp(v, 0.0, 6.0);
    case PackedActivation::hardswish: return v * std::clamp(v + 3.0, 0.0, 6.0) / 6.0;
    case PackedActivation::silu: return v / (1.0 + std::exp(-v));
    case PackedActivation::gelu: return 0.5 * v * (1.0 + std::erf(v * std::sqrt(0.5)));
    default: return v;
  }
}

void fill(
    Packed& in,
    const std::function<float(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& value) {
  const PackedLayout& l = in.layout;
  for (std::int64_t n = 0; n < l.n_blocks() * l.images; ++n) {
    for (std::int64_t c = 0; c < l.n_channels; ++c) {
      for (std::int64_t a = 0; a < l.rows; ++a) {
        for (std::int64_t b = 0; b < l.columns; ++b) {
          for (std::int64_t y = -l.top; y < l.strip_height + l.bottom; ++y) {
            for (std::int64_t x = -l.left; x < l.strip_width + l.right; ++x) {
              in.at(n, c, a, b, y, x) = value(n, c, a * l.strip_height + y, b * l.strip_width + x);
            }
          }
        }
      }
    }
  }
}

// Largest error against the definition, relative to its bound.
double error_of(const Case& c, Packed& out, PackedActivation activation, bool add_residual) {
  double worst = 0.0;
  for (std::int64_t n = 0; n < c.l.images; ++n) {
    for (std::int64_t row = 0; row < c.l.outputs; ++row) {
      for (std::int64_t y = 0; y < c.out_height; ++y) {
        for (std::int64_t x = 0; x < c.out_width; ++x) {
          double size = 0.0;
          const double want = activated(activation, c.expected(n, row, y, x, add_residual, size));
          const PackedLayout& l = c.p.out;
          const double got =
              out.at(n, c.p.outputs[static_cast<std::size_t>(row)], y / l.strip_height,
                     x / l.strip_width, y % l.strip_height, x % l.strip_width);
          worst = std::max(worst, std::abs(got - want) / (1e-6 * size + 2e-7));
        }
      }
    }
  }
  return worst;
}

void run_case(const Layer& layer, unsigned seed, bool lists, Isa isa, const PackedBlocking& how,
              PackedActivation activation, int threads, std::vector<float>* bits) {
  Case c(layer, seed, lists);
  c.p.activation = activation;
  const bool add_residual = seed % 2 == 1;
  Packed in(c.p.in), out(c.p.out), residual(c.p.out);
  fill(in, [&](auto n, auto ch, auto y, auto x) { return c.input(n, ch, y, x); });
  fill(residual, [&](auto n, auto ch, auto y, auto x) {
    const bool inside = n < layer.images && y >= 0 && x >= 0 && y < c.out_height && x < c.out_width;
    return inside ? c.residual[static_cast<std::size_t>(
                        ((n * c.total_outputs + ch) * c.out_height + y) * c.out_width + x)]
                  : 0.0f;
  });
  const PackedConvolution plan(c.p, how, isa, threads);
  plan.run(in.view(), out.view(), add_residual ? residual.view() : PackedView{}, threads);
  const double worst = error_of(c, out, activation, add_residual);
  char told[200];
  std::snprintf(told, sizeof told,
                "%s %s%s, %d rows of %d x %d, blocks of %lld, %d threads: %.2f of the bound",
                causalprune::isa_name(isa), layer.name, lists ? ", lists" : "",
                plan.blocking().rows_per_group, plan.blocking().tile_height,
                plan.blocking().tile_width, static_cast<long long>(plan.blocking().block_channels),
                threads, worst);
  check(worst < 1.0, told);
  if (bits != nullptr) bits->assign(out.memory.get(), out.memory.get() + out.layout.floats());
}

void test_definition(Isa isa) {
  unsigned seed = static_cast<unsigned>(isa);
  for (const Layer& layer : kLayers) {
    for (const bool lists : {false, true}) {
      for (const int rows : {1, 2, 4}) {
        const auto activation = static_cast<PackedActivation>(++seed % 6);
        run_case(layer, seed, lists, isa, {rows, 0, 0, 0}, activation, 1, nullptr);
      }
    }
  }
}

void test_blocking_and_threads_keep_the_bits(Isa isa) {
  const Layer layer{"3x3 for bits", 33, 24, 20, 9, 14, 3, 1, 1, 1, 1, 16, 1, 1, 0.4};
  std::vector<float> first, again;
  run_case(layer, 5, false, isa, {1, 1, 1, 24}, PackedActivation::silu, 1, &first);
  for (const PackedBlocking how :
       {PackedBlocking{1, 1, 2, 7}, PackedBlocking{1, 2, 1, 1}, PackedBlocking{1, 0, 0, 0}}) {
    for (const int threads : {1, 2, 5}) {
      run_case(layer, 5, false, isa, how, PackedActivation::silu, threads, &again);
      check(std::equal(first.begin(), first.end(), again.begin()), "same bits");
    }
  }
}

void test_not_a_number(Isa isa) {
  Layer layer = kLayers[0];
  layer.density = 1.0;
  for (const auto activation :
       {PackedActivation::none, PackedActivation::relu6, PackedActivation::gelu}) {
    Case c(layer, 4, false);
    c.p.activation = activation;
    c.x[0] = std::nanf("");
    Packed in(c.p.in), out(c.p.out);
    fill(in, [&](auto n, auto ch, auto y, auto x) { return c.input(n, ch, y, x); });
    const PackedConvolution plan(c.p, {1, 0, 0, 0}, isa, 1);
    plan.run(in.view(), out.view(), {}, 1);
    bool near = true, far = true;
    for (std::int64_t row = 0; row < layer.outputs; ++row) {
      near = near && std::isnan(out.at(0, row, 0, 0, 1, 1));
      far =
          far && !std::isnan(out.at(0, row, 0, 0, 2, 1)) && !std::isnan(out.at(1, row, 0, 0, 0, 0));
    }
    check(near && far, "what is not a number goes through, and no further");
  }
}

void test_refusals() {
  const auto made = [](const std::function<void(PackedConvolutionProblem&)>& change) {
    return [change] {
      Case c(kLayers[0], 1, true);
      change(c.p);
      const PackedConvolution plan(c.p, {1, 0, 0, 0}, Isa::scalar, 1);
    };
  };
  using P = PackedConvolutionProblem&;
  refused(made([](P p) { p.inputs[0] = 99; }), "inputs");
  refused(made([](P p) { p.inputs[0] = p.inputs[1]; }), "twice");
  refused(made([](P p) { p.outputs.clear(); }), "outputs");
  refused(made([](P p) { p.outputs[0] = -1; }), "outputs");
  refused(made([](P p) { p.groups = 2; }), "groups");
  refused(made([](P p) { p.stride_height = 0; }), "stride");
  refused(made([](P p) { p.padding_width = -1; }), "padding");
  refused(made([](P p) { p.dilation_width = 1 << 30; }), "dilation");
  refused(made([](P p) { p.in.top = 0; }), "halo");
  refused(made([](P p) { p.in.images = 8; }), "16 lanes");
  refused(made([](P p) { p.in.strip_height = 2; }), "cover");
  refused(made([](P p) { p.in.n_channels = std::int64_t{1} << 30; }), "2 GiB");
  refused(made([](P p) { p.out.height -= 1; }), "height");
  refused([] { causalprune::packed_activation_by_name("swish"); }, "hardswish");
}

}  // namespace

int main() {
  for (const Isa isa : causalprune::available_isas()) {
    test_definition(isa);
    test_blocking_and_threads_keep_the_bits(isa);
    test_not_a_number(isa);
  }
  test_refusals();
  std::printf("%d checks held, %d did not\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
