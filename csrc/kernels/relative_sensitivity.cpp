// Checks a relative_sensitivity problem, brings its points into padded planes, runs the tiles and
// takes the maximum over points.

#include "kernels/relative_sensitivity.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"

namespace causalprune {

namespace {

constexpr std::int64_t kBlock = 16;

// On a layer's geometry, so that no product of two leaves 64 bits.
constexpr std::int64_t kLimit = std::numeric_limits<std::int32_t>::max();

const SensitivityKernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kSensitivityKernelsAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kSensitivityKernelsAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kSensitivityKernelsNeon;
#endif
    default: return kSensitivityKernelsScalar;
  }
}

// Output size along one axis, after checking it.
std::int64_t output_size(std::int64_t size, std::int64_t kernel, std::int64_t stride,
                         std::int64_t padding, std::int64_t dilation) {
  const auto within = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least) fail(name, ": expected at least ", least, ", got ", value);
    if (value > kLimit) fail(name, ": expected at most ", kLimit, ", got ", value);
  };
  within("weight", kernel, 1);
  within("stride", stride, 1);
  within("padding", padding, 0);
  within("dilation", dilation, 1);
  const std::int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// Sizes that follow from the problem's.
struct Shape {
  std::int64_t inputs, outputs;  // of one group
  std::int64_t blocks, taps, weights;
  std::int64_t out_height, out_width;
  std::int64_t pitch, plane;  // of a padded input channel

  explicit Shape(const SensitivityProblem& p) {
    const SensitivityOutput out = sensitivity_output(p);
    out_height = out.height;
    out_width = out.width;
    inputs = p.n_inputs / p.groups;
    outputs = p.n_outputs / p.groups;
    blocks = (outputs + kBlock - 1) / kBlock;
    taps = checked_product(p.kernel_height, p.kernel_width);
    weights = checked_product(inputs, taps);
    pitch = p.width + 2 * p.padding_width;
    plane = checked_product(p.height + 2 * p.padding_height, pitch);
  }

  std::int64_t positions() const { return out_height * out_width; }
};

// What was seen while a point was read.
struct Seen {
  bool negative = false, finite = true;
};

struct Workspace {
  AlignedArray<float> positive, negative;  // [inputs, padded height, padded width]
  AlignedArray<float> inverse, total;
  AlignedArray<float> best;  // [groups * blocks, weights, 16]
  std::vector<std::int64_t> position;
  std::int64_t points = -1;  // which image and group the planes hold
  Seen seen;

  Workspace(const SensitivityProblem& p, const Shape& s)
      : positive(zeros(checked_product(s.inputs, s.plane))),
        negative(zeros(checked_product(s.inputs, s.plane))),
        inverse(aligned_array<float>(kTilePositions * 2 * kBlock)),
        total(aligned_array<float>(checked_product(s.weights, kBlock))),
        best(zeros(checked_product(checked_product(p.groups * s.blocks, s.weights), kBlock))),
        position(static_cast<std::size_t>(kTilePositions)) {}

  static AlignedArray<float> zeros(std::int64_t count) {
    AlignedArray<float> values = aligned_array<float>(count);
    std::fill_n(values.get(), count, 0.0f);
    return values;
  }
};

// [groups, blocks, weights, 16], zero in the lanes beyond the last output.
AlignedArray<float> pack_weight(const SensitivityProblem& p, const Shape& s) {
  const std::int64_t n_blocks = p.groups * s.blocks;
  AlignedArray<float> packed =
      Workspace::zeros(checked_product(checked_product(n_blocks, s.weights), kBlock));
  for (std::int64_t k = 0; k < n_blocks; ++k) {
    const std::int64_t first = k % s.blocks * kBlock;
    const std::int64_t lanes = std::min(kBlock, s.outputs - first);
    const float* from = p.weight + (k / s.blocks * s.outputs + first) * s.weights;
    float* to = packed.get() + k * s.weights * kBlock;
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      for (std::int64_t f = 0; f < s.weights; ++f)
        to[f * kBlock + lane] = from[lane * s.weights + f];
    }
  }
  return packed;
}

// The image's positive part, and its negative part with the sign turned, into the planes.
Seen read_points(const SensitivityProblem& p, const Shape& s, std::int64_t image,
                 std::int64_t group, Workspace& w) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  std::uint32_t negative = 0, broken = 0;
  for (std::int64_t i = 0; i < s.inputs; ++i) {
    const float* plane = p.x + image * p.x_stride[0] + (group * s.inputs + i) * p.x_stride[1];
    for (std::int64_t y = 0; y < p.height; ++y) {
      const float* from = plane + y * p.x_stride[2];
      const std::int64_t start = i * s.plane + (y + p.padding_height) * s.pitch + p.padding_width;
      float* above = w.positive.get() + start;
      float* below = w.negative.get() + start;
      for (std::int64_t c = 0; c < p.width; ++c) {
        const float value = from[c * p.x_stride[3]];
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        broken |= (bits & kExponent) == kExponent ? 1u : 0u;
        negative |= value < 0.0f ? 1u : 0u;
        above[c] = value > 0.0f ? value : 0.0f;
        below[c] = value < 0.0f ? -value : 0.0f;
      }
    }
  }
  return {negative != 0, broken == 0};
}

struct Task {
  const SensitivityProblem& p;
  const Shape& s;
  const SensitivityKernels& kernels;
  const float* packed;
  const std::int64_t* tap;
  Workspace& w;

  // One image, one group, one block of outputs. Tells whether everything was finite.
  bool run(std::int64_t index) {
    const std::int64_t block = index % (p.groups * s.blocks);
    const std::int64_t image = index / (p.groups * s.blocks);
    if (const std::int64_t points = index / s.blocks; w.points != points) {
      w.seen = read_points(p, s, image, block / s.blocks, w);
      w.points = points;
    }
    if (!w.seen.finite) return false;
    bool finite = run_point(w.positive.get(), block);
    if (w.seen.negative) finite &= run_point(w.negative.get(), block);
    return finite;
  }

  bool run_point(const float* x, std::int64_t block) {
    const std::int64_t n_positions = s.positions();
    const float* weight = packed + block * s.weights * kBlock;
    std::fill_n(w.total.get(), s.weights * kBlock, 0.0f);
    bool finite = true;
    for (std::int64_t first = 0; first < n_positions; first += kTilePositions) {
      const std::int64_t n = std::min(kTilePositions, n_positions - first);
      for (std::int64_t k = 0; k < n; ++k) {
        const std::int64_t row = (first + k) / s.out_width, column = (first + k) % s.out_width;
        w.position[static_cast<std::size_t>(k)] =
            row * p.stride_height * s.pitch + column * p.stride_width;
      }
      finite &= kernels.tile(p.aggregate, {n, w.position.data(), s.weights, tap, x, weight,
                                           w.inverse.get(), w.total.get()});
    }
    const float scale =
        p.aggregate == Aggregate::max ? 1.0f : 1.0f / static_cast<float>(n_positions);
    kernels.raise(s.weights, weight, w.total.get(), scale,
                  w.best.get() + block * s.weights * kBlock);
    return finite;
  }
};

std::vector<std::int64_t> tap_offsets(const SensitivityProblem& p, const Shape& s) {
  std::vector<std::int64_t> offsets;
  offsets.reserve(static_cast<std::size_t>(s.weights));
  for (std::int64_t i = 0; i < s.inputs; ++i) {
    for (std::int64_t ky = 0; ky < p.kernel_height; ++ky) {
      for (std::int64_t kx = 0; kx < p.kernel_width; ++kx) {
        offsets.push_back(i * s.plane + ky * p.dilation_height * s.pitch + kx * p.dilation_width);
      }
    }
  }
  return offsets;
}

// Names what is not finite, and where; the tasks only saw that something is not.
[[noreturn]] void fail_not_finite(const SensitivityProblem& p, const Shape& s) {
  const std::int64_t taps_width = p.kernel_width;
  for (std::int64_t k = 0; k < p.n_outputs * s.weights; ++k) {
    if (std::isfinite(p.weight[k])) continue;
    const std::int64_t tap = k % s.taps;
    fail("weight: expected finite values, got ", p.weight[k], " at [", k / s.weights, ", ",
         k % s.weights / s.taps, ", ", tap / taps_width, ", ", tap % taps_width, "]");
  }
  for (std::int64_t n = 0; n < p.n_images; ++n) {
    for (std::int64_t i = 0; i < p.n_inputs; ++i) {
      for (std::int64_t y = 0; y < p.height; ++y) {
        for (std::int64_t c = 0; c < p.width; ++c) {
          const float value =
              p.x[n * p.x_stride[0] + i * p.x_stride[1] + y * p.x_stride[2] + c * p.x_stride[3]];
          if (std::isfinite(value)) continue;
          fail("x: expected finite values, got ", value, " at [", n, ", ", i, ", ", y, ", ", c,
               "]");
        }
      }
    }
  }
  fail("x: expected sums of |weight| * x within float32, got one beyond it");
}

// The maximum over the workers' parts, in the order of the weight.
void unpack(const SensitivityProblem& p, const Shape& s, const std::vector<Workspace>& parts) {
  for (std::int64_t o = 0; o < p.n_outputs; ++o) {
    const std::int64_t group = o / s.outputs, output = o % s.outputs;
    const std::int64_t block = group * s.blocks + output / kBlock;
    const std::int64_t start = block * s.weights * kBlock + output % kBlock;
    for (std::int64_t f = 0; f < s.weights; ++f) {
      float best = 0.0f;
      for (const Workspace& part : parts) best = std::max(best, part.best[start + f * kBlock]);
      p.sensitivity[o * s.weights + f] = best;
    }
  }
}

}  // namespace

Aggregate aggregate_by_name(const char* name) {
  if (std::strcmp(name, "mean") == 0) return Aggregate::mean;
  if (std::strcmp(name, "max") == 0) return Aggregate::max;
  fail("aggregate: expected one of mean, max, got '", name, "'");
}

SensitivityOutput sensitivity_output(const SensitivityProblem& p) {
  if (p.groups < 1) fail("groups: expected at least 1, got ", p.groups);
  if (p.n_inputs % p.groups != 0 || p.n_outputs % p.groups != 0) {
    fail("groups: expected a divisor of ", p.n_inputs, " input and ", p.n_outputs,
         " output channels, got ", p.groups);
  }
  return {
      output_size(p.height, p.kernel_height, p.stride_height, p.padding_height, p.dilation_height),
      output_size(p.width, p.kernel_width, p.stride_width, p.padding_width, p.dilation_width)};
}

void relative_sensitivity(const SensitivityProblem& p, Isa isa, int threads) {
  const Shape s(p);
  const std::int64_t n_weights = checked_product(p.n_outputs, s.weights);
  std::fill_n(p.sensitivity, n_weights, 0.0f);
  const bool finite_weight =
      std::all_of(p.weight, p.weight + n_weights, [](float value) { return std::isfinite(value); });
  if (!finite_weight) fail_not_finite(p, s);
  if (p.n_images == 0 || n_weights == 0 || s.positions() == 0 || p.height == 0 || p.width == 0) {
    return;
  }
  const AlignedArray<float> packed = pack_weight(p, s);
  const std::vector<std::int64_t> tap = tap_offsets(p, s);
  const std::int64_t n_tasks = checked_product(p.n_images, p.groups * s.blocks);
  const std::int64_t work = checked_product(n_weights, checked_product(p.n_images, s.positions()));
  const int workers = worker_count(threads, n_tasks, work);
  std::vector<Workspace> workspaces;
  workspaces.reserve(static_cast<std::size_t>(workers));
  for (int k = 0; k < workers; ++k) workspaces.emplace_back(p, s);
  std::atomic<bool> finite{true};
  const SensitivityKernels& kernels = kernels_of(isa);
  parallel_for(workers, n_tasks, [&](int worker, std::int64_t task) {
    Workspace& workspace = workspaces[static_cast<std::size_t>(worker)];
    if (!Task{p, s, kernels, packed.get(), tap.data(), workspace}.run(task)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite) fail_not_finite(p, s);
  unpack(p, s, workspaces);
}

}  // namespace causalprune
