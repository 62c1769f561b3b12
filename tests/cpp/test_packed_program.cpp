// Packed programs on every instruction set this machine has, against the definition, and from
// several threads. One line for each check; the exit status tells whether all of them held.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checks.hpp"
#include "common/aligned_array.hpp"
#include "kernels/packed_program.hpp"

namespace {

using causalprune::Isa;
using causalprune::PackedActivation;
using causalprune::PackedBlocking;
using causalprune::PackedConvolution;
using causalprune::PackedConvolutionProblem;
using causalprune::PackedLayout;
using causalprune::PackedProgram;
using causalprune::PlainView;

PlainView plain(std::vector<float>& values, std::int64_t n, std::int64_t c, std::int64_t h,
                std::int64_t w, bool channels_last) {
  if (channels_last) return {values.data(), {n, c, h, w}, {h * w * c, 1, w * c, c}};
  return {values.data(), {n, c, h, w}, {c * h * w, h * w, w, 1}};
}

struct Cut {
  std::int64_t images, rows, columns, strip_height, strip_width;
};

// In, a 3x3 maximum of stride 2 over strips, twice itself added, a slice of two channels out.
void test_program(Isa isa, const Cut& cut, bool channels_last, int threads) {
  constexpr std::int64_t kN = 5, kC = 21, kH = 13, kW = 10, kOutH = 7, kOutW = 5;
  std::mt19937 draw(static_cast<unsigned>(cut.rows));
  std::normal_distribution<float> normal;
  std::vector<float> x(kN * kC * kH * kW), y(kN * 2 * kOutH * kOutW), mean(kN * kC);
  for (float& v : x) v = normal(draw);
  const bool tall = cut.rows > 1, wide = cut.columns > 1;
  const PackedLayout in{kN,
                        kC,
                        kH,
                        kW,
                        cut.images,
                        cut.rows,
                        cut.columns,
                        tall ? 2 * cut.strip_height : kH,
                        wide ? 2 * cut.strip_width : kW,
                        1,
                        1,
                        1,
                        1};
  const PackedLayout out{
      kN, kC, kOutH, kOutW, cut.images, cut.rows, cut.columns, cut.strip_height, cut.strip_width,
      0,  0,  0,     0};
  PackedProgram program(isa);
  const int a = program.buffer(in), b = program.buffer(out), c = program.buffer(out);
  program.pack(0, a);
  program.fill_halo(a, -std::numeric_limits<float>::infinity());
  causalprune::PoolProblem pool{};
  pool.kernel_height = pool.kernel_width = 3;
  pool.stride_height = pool.stride_width = 2;
  pool.padding_height = pool.padding_width = 1;
  program.pool(pool, a, b);
  program.combine(b, b, c, std::vector<float>(kC, 2.0f), {}, PackedActivation::relu);
  program.unpack(program.slice(c, 19, 2), 0);
  program.fill_halo(b, 0.0f);
  program.global_average(b, 1);
  program.finish();
  auto workspace = causalprune::aligned_array<float>(program.workspace_floats());
  std::fill_n(workspace.get(), program.workspace_floats(), std::nanf(""));
  std::vector<PlainView> inputs{plain(x, kN, kC, kH, kW, channels_last)};
  std::vector<PlainView> outputs{plain(y, kN, 2, kOutH, kOutW, channels_last),
                                 plain(mean, kN, kC, 1, 1, false)};
  const bool finite =
      program.run(inputs, outputs, workspace.get(), program.workspace_floats(), true, threads);
  double worst = finite ? 0.0 : 1.0;
  for (std::int64_t n = 0; n < kN; ++n) {
    for (std::int64_t ch = 0; ch < kC; ++ch) {
      double sum = 0.0;
      for (std::int64_t oy = 0; oy < kOutH; ++oy) {
        for (std::int64_t ox = 0; ox < kOutW; ++ox) {
          float most = -std::numeric_limits<float>::infinity();
          for (std::int64_t ky = 0; ky < 9; ++ky) {
            const std::int64_t iy = 2 * oy - 1 + ky / 3, ix = 2 * ox - 1 + ky % 3;
            if (iy < 0 || ix < 0 || iy >= kH || ix >= kW) continue;
            const PlainView& v = inputs[0];
            most = std::max(
                most,
                v.data[n * v.stride[0] + ch * v.stride[1] + iy * v.stride[2] + ix * v.stride[3]]);
          }
          sum += most;
          if (ch < 19) continue;
          const PlainView& v = outputs[0];
          const float got = v.data[n * v.stride[0] + (ch - 19) * v.stride[1] + oy * v.stride[2] +
                                   ox * v.stride[3]];
          worst = std::max<double>(worst, std::abs(got - std::max(0.0f, 4.0f * most)));
        }
      }
      const double got = mean[static_cast<std::size_t>(n * kC + ch)];
      worst = std::max(worst, std::abs(got - sum / (kOutH * kOutW)));
    }
  }
  check(worst < 1e-5, std::string(causalprune::isa_name(isa)) + " program, " +
                          std::to_string(cut.rows) + " x " + std::to_string(cut.columns) +
                          " strips, " + std::to_string(threads) + " threads");
  x[3] = std::numeric_limits<float>::infinity();
  check(!program.run(inputs, outputs, workspace.get(), program.workspace_floats(), true, threads),
        "an infinite input is told");
  refused([&] { program.run(inputs, outputs, workspace.get(), 16, true, 1); }, "workspace");
  refused([&] { program.run({}, outputs, workspace.get(), program.workspace_floats(), true, 1); },
          "inputs");
  refused([&] { program.finish(); }, "finish");
}

void test_programs(Isa isa) {
  for (const Cut& cut :
       {Cut{16, 1, 1, 7, 5}, Cut{1, 4, 4, 2, 2}, Cut{2, 1, 8, 7, 1}, Cut{4, 4, 1, 2, 5}}) {
    for (const int threads : {1, 3}) test_program(isa, cut, threads > 1, threads);
  }
}

// One plan and one program in several threads at a time, each with its own memory.
void test_concurrent_runs(Isa isa) {
  constexpr std::int64_t kN = 16, kC = 8, kSize = 9;
  const PackedLayout in{kN, kC, kSize, kSize, 16, 1, 1, kSize, kSize, 1, 1, 1, 1};
  const PackedLayout out{kN, kC, kSize, kSize, 16, 1, 1, kSize, kSize, 0, 0, 0, 0};
  std::vector<float> weight(kC * kC * 9, 0.25f);
  PackedConvolutionProblem p{};
  p.in = in, p.out = out;
  p.kernel_height = p.kernel_width = 3;
  p.stride_height = p.stride_width = p.dilation_height = p.dilation_width = p.groups = 1;
  p.padding_height = p.padding_width = 1;
  p.inputs.resize(kC), p.outputs.resize(kC);
  std::iota(p.inputs.begin(), p.inputs.end(), 0), p.outputs = p.inputs;
  p.weight = weight.data();
  PackedProgram program(isa);
  const int a = program.buffer(in), b = program.buffer(out);
  program.pack(0, a);
  program.fill_halo(a, 0.0f);
  program.convolve(std::make_shared<const PackedConvolution>(p, PackedBlocking{1, 1, 1, 4}, isa, 1),
                   a, b, -1);
  program.unpack(b, 0);
  program.finish();
  std::vector<std::vector<float>> results(4, std::vector<float>(kN * kC * kSize * kSize));
  std::vector<std::thread> threads;
  for (std::vector<float>& y : results) {
    threads.emplace_back([&program, &y] {
      std::vector<float> x(y.size());
      for (std::size_t k = 0; k < x.size(); ++k) x[k] = static_cast<float>(k % 17);
      auto workspace = causalprune::aligned_array<float>(program.workspace_floats());
      for (int run = 0; run < 3; ++run) {
        program.run({plain(x, kN, kC, kSize, kSize, false)},
                    {plain(y, kN, kC, kSize, kSize, false)}, workspace.get(),
                    program.workspace_floats(), true, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  bool same = true;
  for (const std::vector<float>& y : results) same = same && y == results[0];
  check(same && results[0][100] != 0.0f, "concurrent runs agree");
}

}  // namespace

int main() {
  for (const Isa isa : causalprune::available_isas()) {
    test_programs(isa);
    test_concurrent_runs(isa);
  }
  std::printf("%d checks held, %d did not\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
