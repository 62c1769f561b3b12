// path_effects without Python in the loop: one line of CSV for each shape and instruction set.
// Usage: bench_path_effects [isa] [shape name] [4 or 1]; one thread, CPU time, best of several
// runs. 4: all statistics of an edge, 1: the gradient-weighted sum alone.

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "common/clock.hpp"
#include "kernels/path_effects.hpp"

namespace {

struct Shape {
  const char* name;
  std::int64_t images, inputs, outputs, size, kernel;
};

constexpr Shape kShapes[] = {
    {"resnet20_16x32", 64, 16, 16, 32, 3},
    {"resnet20_64x8", 64, 64, 64, 8, 3},
    {"resnet50_64x56", 4, 64, 64, 56, 3},
    {"resnet50_128x28", 8, 128, 128, 28, 3},
    {"resnet50_256x14", 8, 256, 256, 14, 3},
    {"resnet50_512x7", 8, 512, 512, 7, 3},
    {"resnet50_1x1_64_256_56", 8, 64, 256, 56, 1},
    {"resnet50_1x1_256_64_56", 8, 256, 64, 56, 1},
    {"resnet50_1x1_1024_256_14", 16, 1024, 256, 14, 1},
    {"resnet50_1x1_512_2048_7", 64, 512, 2048, 7, 1},
};

using causalprune::thread_seconds;

std::vector<float> normal(std::int64_t count, float scale, bool rectified, std::mt19937& random) {
  std::normal_distribution<float> draw(0.0f, scale);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& v : values) {
    v = draw(random);
    if (rectified && v < 0.0f) v = 0.0f;
  }
  return values;
}

void set_strides(std::int64_t (&stride)[4], std::int64_t channels, std::int64_t size) {
  stride[3] = 1;
  stride[2] = size;
  stride[1] = size * size;
  stride[0] = channels * size * size;
}

void run(const Shape& shape, causalprune::Isa isa, int statistics) {
  std::mt19937 random(7);
  const std::int64_t area = shape.size * shape.size;
  const auto x = normal(shape.images * shape.inputs * area, 1.0f, true, random);
  const auto weight =
      normal(shape.outputs * shape.inputs * shape.kernel * shape.kernel, 0.1f, false, random);
  const auto pre = normal(shape.images * shape.outputs * area, 1.0f, false, random);
  const auto grad = normal(shape.images * shape.outputs * area, 1.0f, false, random);
  std::vector<double> edge(static_cast<std::size_t>(shape.outputs * shape.inputs * 4));
  std::vector<double> unit(static_cast<std::size_t>(shape.images * shape.inputs));

  causalprune::PathEffectsProblem p{};
  p.n_images = shape.images;
  p.n_inputs = shape.inputs;
  p.n_outputs = shape.outputs;
  p.height = p.width = p.out_height = p.out_width = shape.size;
  p.kernel_height = p.kernel_width = shape.kernel;
  p.stride_height = p.stride_width = p.dilation_height = p.dilation_width = p.groups = 1;
  p.padding_height = p.padding_width = shape.kernel / 2;
  p.activation = causalprune::Activation::relu;
  p.n_statistics = statistics;
  p.x = x.data();
  p.weight = weight.data();
  p.pre = pre.data();
  p.grad = grad.data();
  set_strides(p.x_stride, shape.inputs, shape.size);
  set_strides(p.pre_stride, shape.outputs, shape.size);
  set_strides(p.grad_stride, shape.outputs, shape.size);
  p.edge = edge.data();
  p.unit = unit.data();

  double best = 1e30, total = 0.0;
  for (int repeat = 0; repeat < 3 || total < 0.5; ++repeat) {
    const double begin = thread_seconds();
    causalprune::path_effects(p, isa, 1);
    const double spent = thread_seconds() - begin;
    total += spent;
    if (spent < best) best = spent;
  }
  const double flop = 2.0 * static_cast<double>(shape.images * shape.inputs * shape.outputs * area *
                                                shape.kernel * shape.kernel);
  std::printf("%s,%d,%s,%.3f,%.1f\n", shape.name, statistics, causalprune::isa_name(isa),
              best * 1e3, flop / best * 1e-9);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("shape,statistics,isa,ms,convolution_gflop_per_s\n");
  for (const causalprune::Isa isa : causalprune::available_isas()) {
    if (argc > 1 && std::string(argv[1]) != causalprune::isa_name(isa)) continue;
    for (const Shape& shape : kShapes) {
      if (argc > 2 && std::string(argv[2]) != shape.name) continue;
      for (const int statistics : {causalprune::kEdgeStatistics, 1}) {
        if (argc > 3 && std::to_string(statistics) != argv[3]) continue;
        run(shape, isa, statistics);
      }
    }
  }
  return 0;
}
