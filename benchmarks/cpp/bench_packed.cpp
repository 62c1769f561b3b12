// Packed convolutions without Python in the loop: useful GFLOP/s of one thread, and the share of
// what multiply-adds on registers alone reach in the same run. The best of many short windows of
// thread CPU time, because other processes come and go.
//
//   bench_packed [seconds a figure] [layer]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/clock.hpp"
#include "kernels/machine_rates.hpp"
#include "kernels/packed_convolution.hpp"
#include "kernels/packed_steps.hpp"

namespace {

using causalprune::PackedBlocking;
using causalprune::PackedConvolution;
using causalprune::PackedConvolutionProblem;
using causalprune::PackedLayout;

using causalprune::thread_seconds;

struct Layer {
  const char* name;
  std::int64_t inputs, outputs, size, kernel;
};

constexpr Layer kLayers[] = {
    {"ResNet-20 16x32", 16, 16, 32, 3},    {"ResNet-20 32x16", 32, 32, 16, 3},
    {"ResNet-20 64x8", 64, 64, 8, 3},      {"ResNet-50 64x56", 64, 64, 56, 3},
    {"ResNet-50 128x28", 128, 128, 28, 3}, {"ResNet-50 256x14", 256, 256, 14, 3},
    {"ResNet-50 512x7", 512, 512, 7, 3},   {"1x1 256-64x56", 256, 64, 56, 1},
    {"1x1 1024-256x14", 1024, 256, 14, 1}, {"1x1 512-2048x7", 512, 2048, 7, 1},
};

// One block of the layout: sixteen images, or one in 4 x 4 strips.
PackedLayout layout(std::int64_t channels, std::int64_t size, bool strips, std::int64_t halo) {
  const std::int64_t cut = strips ? 4 : 1, strip = (size + cut - 1) / cut;
  return {strips ? 1 : 16,
          channels,
          size,
          size,
          strips ? 1 : 16,
          cut,
          cut,
          strip,
          strip,
          halo,
          halo,
          halo,
          halo};
}

void measure(const Layer& l, double density, int rows, bool strips, double seconds) {
  PackedConvolutionProblem p{};
  const std::int64_t halo = l.kernel / 2;
  p.in = layout(l.inputs, l.size, strips, halo);
  p.out = layout(l.outputs, l.size, strips, halo);
  p.kernel_height = p.kernel_width = l.kernel;
  p.stride_height = p.stride_width = p.dilation_height = p.dilation_width = p.groups = 1;
  p.padding_height = p.padding_width = halo;
  p.activation = causalprune::PackedActivation::relu;
  p.inputs.resize(static_cast<std::size_t>(l.inputs));
  p.outputs.resize(static_cast<std::size_t>(l.outputs));
  std::iota(p.inputs.begin(), p.inputs.end(), 0);
  std::iota(p.outputs.begin(), p.outputs.end(), 0);
  std::mt19937 draw(1);
  std::uniform_real_distribution<double> uniform;
  std::vector<float> weight(static_cast<std::size_t>(l.outputs * l.inputs * l.kernel * l.kernel),
                            0.0f);
  for (float& w : weight) {
    if (uniform(draw) < density) w = 0.01f;
  }
  p.weight = weight.data();
  const auto in = causalprune::aligned_array<float>(p.in.floats());
  const auto out = causalprune::aligned_array<float>(p.out.floats());
  std::fill_n(in.get(), p.in.floats(), 0.5f);
  std::fill_n(out.get(), p.out.floats(), 0.0f);
  const double before = thread_seconds();
  const PackedConvolution plan(p, {rows, 0, 0, 0}, causalprune::chosen_isa(), 1);
  const double planned = thread_seconds() - before;
  double best = 1e30;
  const double begin = thread_seconds();
  while (thread_seconds() - begin < seconds) {
    const double start = thread_seconds();
    plan.run(causalprune::view_of(p.in, in.get()), causalprune::view_of(p.out, out.get()), {}, 1);
    best = std::min(best, thread_seconds() - start);
  }
  const double useful = 2.0 * static_cast<double>(plan.n_taps()) *
                        static_cast<double>(l.size * l.size * p.in.n_images);
  std::printf(
      "%-18s %-7s %4.0f%%  rows %d  %7.1f GFLOP/s  %9.1f us  %d x %d, %lld channels, plan %.0f "
      "ms\n",
      l.name, strips ? "1 image" : "16", 100 * (1 - density), rows, useful / best / 1e9, best * 1e6,
      plan.blocking().tile_height, plan.blocking().tile_width,
      static_cast<long long>(plan.blocking().block_channels), planned * 1e3);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0.2;
  const causalprune::Isa isa = causalprune::chosen_isa();
  std::printf("%s, %.0f GFLOP/s on registers\n", causalprune::isa_name(isa),
              causalprune::peak_gflops(isa));
  for (const Layer& l : kLayers) {
    if (argc > 2 && std::strstr(l.name, argv[2]) == nullptr) continue;
    for (const bool strips : {false, true}) {
      for (const double density : {0.6, 0.3, 0.1, 0.05}) measure(l, density, 1, strips, seconds);
      for (const int rows : {2, 4}) measure(l, 1.0, rows, strips, seconds);
    }
  }
}
