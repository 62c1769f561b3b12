// channel_update on every instruction set this machine has, against the definition in double
// precision. One line for each check; the exit status tells whether all of them held.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/channel_update.hpp"

namespace {

using causalprune::ChannelUpdateProblem;
using causalprune::Isa;

int failed = 0, passed = 0;

void check(bool holds, const std::string& what) {
  std::printf("%s  %s\n", holds ? "ok  " : "FAIL", what.c_str());
  ++(holds ? passed : failed);
}

struct Layer {
  const char* name;
  std::int64_t rows, changed, outputs, height, width, kernel, stride, padding, dilation;
};

constexpr Layer kLayers[] = {
    {"3x3", 3, 1, 17, 9, 7, 3, 1, 1, 1},          {"64 outputs", 2, 2, 64, 8, 8, 3, 1, 1, 1},
    {"97 outputs", 1, 1, 97, 11, 13, 3, 2, 1, 1}, {"dilated", 1, 3, 16, 12, 33, 5, 1, 0, 2},
    {"1x1", 4, 1, 15, 6, 6, 1, 1, 0, 1},          {"one output", 2, 1, 1, 6, 6, 3, 2, 2, 1},
    {"wide padding", 1, 1, 20, 2, 2, 3, 1, 5, 1},
};

std::vector<float> drawn(std::int64_t n, std::mt19937& draw) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(draw);
  return values;
}

void strides_of(std::int64_t (&stride)[4], std::int64_t channels, std::int64_t height,
                std::int64_t width, bool channels_last) {
  const std::int64_t plane = height * width;
  const std::int64_t last[4] = {plane * channels, 1, width * channels, channels};
  const std::int64_t first[4] = {plane * channels, plane, width, 1};
  std::copy_n(channels_last ? last : first, 4, stride);
}

struct Case {
  ChannelUpdateProblem p{};
  std::vector<float> plain, difference, weight, out;

  Case(const Layer& l, bool relu, unsigned seed) {
    std::mt19937 draw(seed);
    const auto size = [&](std::int64_t n) {
      return (n + 2 * l.padding - l.dilation * (l.kernel - 1) - 1) / l.stride + 1;
    };
    p.n_rows = l.rows, p.n_changed = l.changed, p.height = l.height, p.width = l.width;
    p.n_outputs = l.outputs, p.out_height = size(l.height), p.out_width = size(l.width);
    p.kernel_height = p.kernel_width = l.kernel;
    p.stride_height = p.stride_width = l.stride;
    p.padding_height = p.padding_width = l.padding;
    p.dilation_height = p.dilation_width = l.dilation;
    p.relu = relu;
    const std::int64_t n_out = l.rows * l.outputs * p.out_height * p.out_width;
    plain = drawn(n_out, draw);
    difference = drawn(l.rows * l.changed * l.height * l.width, draw);
    weight = drawn(l.outputs * l.changed * l.kernel * l.kernel, draw);
    out.assign(static_cast<std::size_t>(n_out), -1.0f);
    p.plain = plain.data(), p.difference = difference.data();
    p.weight = weight.data(), p.out = out.data();
    strides_of(p.plain_stride, l.outputs, p.out_height, p.out_width, true);
    strides_of(p.out_stride, l.outputs, p.out_height, p.out_width, true);
    strides_of(p.difference_stride, l.changed, l.height, l.width, seed % 2 == 0);
    strides_of(p.weight_stride, l.changed, l.kernel, l.kernel, false);
  }

  bool holds() const {
    for (std::int64_t r = 0; r < p.n_rows; ++r) {
      for (std::int64_t o = 0; o < p.n_outputs; ++o) {
        for (std::int64_t y = 0; y < p.out_height; ++y) {
          for (std::int64_t x = 0; x < p.out_width; ++x) {
            const std::int64_t at =
                r * p.plain_stride[0] + o + y * p.plain_stride[2] + x * p.plain_stride[3];
            double sum = p.plain[at], scale = std::abs(sum);
            add_taps(r, o, y, x, sum, scale);
            if (p.relu) sum = std::max(sum, 0.0);
            if (!(std::abs(sum - p.out[at]) <= 1e-6 * scale)) return false;
          }
        }
      }
    }
    return true;
  }

  void add_taps(std::int64_t r, std::int64_t o, std::int64_t y, std::int64_t x, double& sum,
                double& scale) const {
    for (std::int64_t c = 0; c < p.n_changed; ++c) {
      for (std::int64_t ky = 0; ky < p.kernel_height; ++ky) {
        for (std::int64_t kx = 0; kx < p.kernel_width; ++kx) {
          const std::int64_t row = y * p.stride_height - p.padding_height + ky * p.dilation_height;
          const std::int64_t column = x * p.stride_width - p.padding_width + kx * p.dilation_width;
          if (row < 0 || column < 0 || row >= p.height || column >= p.width) continue;
          const double term =
              double{p.difference[r * p.difference_stride[0] + c * p.difference_stride[1] +
                                  row * p.difference_stride[2] + column * p.difference_stride[3]]} *
              p.weight[o * p.weight_stride[0] + c * p.weight_stride[1] + ky * p.weight_stride[2] +
                       kx];
          sum += term;
          scale += std::abs(term);
        }
      }
    }
  }
};

bool refuses(ChannelUpdateProblem problem, void (*spoil)(ChannelUpdateProblem&)) {
  spoil(problem);
  try {
    causalprune::channel_update(problem, Isa::scalar, 1);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  unsigned seed = 1;
  for (const Layer& layer : kLayers) {
    for (const bool relu : {false, true}) {
      for (const Isa isa : causalprune::available_isas()) {
        Case one(layer, relu, seed++);
        causalprune::channel_update(one.p, isa, 1);
        check(one.holds(),
              std::string(causalprune::isa_name(isa)) + ": " + layer.name + (relu ? ", relu" : ""));
      }
    }
  }
  const Case good(kLayers[0], false, 5);
  check(refuses(good.p, [](ChannelUpdateProblem& p) { p.out_width += 1; }), "refuses: width");
  check(refuses(good.p, [](ChannelUpdateProblem& p) { p.stride_height = 0; }), "refuses: stride");
  check(refuses(good.p, [](ChannelUpdateProblem& p) { p.plain_stride[1] = 2; }), "refuses: layout");
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
