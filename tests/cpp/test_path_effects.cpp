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
#include "kernels/path_effects_gather.hpp"
#include "path_effects_cases.hpp"

namespace {

namespace lanes16 = causalprune::CAUSALPRUNE_ISA_NAMESPACE;
using namespace cases;

int passed = 0, failed = 0;

void check(bool holds, const std::string& what) {
  std::printf("%s  %s\n", holds ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  ++(holds ? passed : failed);
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return false;
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// The statistic that is to be had alone: the last of four, to the bit, and the same units.
bool alone(const Results& all, const Results& one) {
  std::vector<double> last;
  for (std::size_t k = 3; k < all.edge.size(); k += 4) last.push_back(all.edge[k]);
  return same_bits(last, one.edge) && same_bits(all.unit, one.unit);
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
                             near(got.unit, want.value.unit, want.scale.unit, 1, where) &&
                             alone(got, run(inputs, kActivations[a], weighted, isa, 1, 1));
          check(holds, std::string(causalprune::isa_name(isa)) + ": " + layer.name + ", " +
                           kActivationNames[a] + (weighted ? ", grad" : "") + where);
        }
      }
    }
  }
}

// ---- the same bits for any number of threads --------------------------------------------------

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
  check_refused("two statistics", {"edge", "4 statistics or 1", "2"},
                with([](auto& p) { p.n_statistics = 2; }));
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
