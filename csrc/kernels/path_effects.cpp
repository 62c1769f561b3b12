// Checks a path_effects problem, runs its tasks and puts their results together.

#include "kernels/path_effects.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/aligned_array.hpp"
#include "common/error.hpp"
#include "common/parallel.hpp"
#include "kernels/path_effects_split.hpp"
#include "kernels/path_effects_task.hpp"

namespace causalprune {

namespace {

void fail_if_not_finite(const char* name, const float* data, const std::int64_t (&size)[4],
                        const std::int64_t (&stride)[4]) {
  for (std::int64_t a = 0; a < size[0]; ++a) {
    for (std::int64_t b = 0; b < size[1]; ++b) {
      for (std::int64_t c = 0; c < size[2]; ++c) {
        const float* row = data + a * stride[0] + b * stride[1] + c * stride[2];
        if (all_finite(row, size[3], stride[3])) continue;
        std::int64_t d = 0;
        while (std::isfinite(row[d * stride[3]])) ++d;
        fail(name, ": expected finite values, got ", row[d * stride[3]], " at [", a, ", ", b, ", ",
             c, ", ", d, "]");
      }
    }
  }
}

// The tasks saw a value that is not finite while reading; names the argument and where.
void fail_not_finite(const PathEffectsProblem& p) {
  const std::int64_t inner = p.n_inputs / p.groups;
  const std::int64_t x_size[4] = {p.n_images, p.n_inputs, p.height, p.width};
  const std::int64_t weight_size[4] = {p.n_outputs, inner, p.kernel_height, p.kernel_width};
  const std::int64_t taps = p.kernel_height * p.kernel_width;
  const std::int64_t weight_stride[4] = {inner * taps, taps, p.kernel_width, 1};
  const std::int64_t out_size[4] = {p.n_images, p.n_outputs, p.out_height, p.out_width};
  fail_if_not_finite("x", p.x, x_size, p.x_stride);
  fail_if_not_finite("weight", p.weight, weight_size, weight_stride);
  fail_if_not_finite("pre", p.pre, out_size, p.pre_stride);
  if (p.grad != nullptr) fail_if_not_finite("grad", p.grad, out_size, p.grad_stride);
}

// Sums that several tasks share: each adds to a part of its own, and the parts are put together in
// their order afterwards.
class Parts {
 public:
  Parts(double* total, std::int64_t size, std::int64_t count)
      : total_(total), size_(size), count_(count) {
    if (count_ == 1) return;
    own_ = aligned_array<double>(checked_product(count_, size_));
    std::fill_n(own_.get(), count_ * size_, 0.0);
  }

  double* first() const { return count_ == 1 ? total_ : own_.get(); }

  void add_up() const {
    if (count_ == 1) return;
    for (std::int64_t part = 0; part < count_; ++part) {
      const double* from = own_.get() + part * size_;
      for (std::int64_t k = 0; k < size_; ++k) total_[k] += from[k];
    }
  }

 private:
  double* total_;
  std::int64_t size_, count_;
  AlignedArray<double> own_;
};

// [groups, blocks, inputs, taps, 16], zero in the lanes beyond the last output.
AlignedArray<float> pack_weight(const PathEffectsProblem& p, const Split& s,
                                const PathKernels& kernels) {
  const std::int64_t each = s.inputs * s.taps;
  AlignedArray<float> packed =
      aligned_array<float>(checked_product(checked_product(p.groups * s.blocks, each), kLanes));
  for (std::int64_t group = 0; group < p.groups; ++group) {
    for (std::int64_t block = 0; block < s.blocks; ++block) {
      const auto lanes = static_cast<int>(std::min(kLanes, s.outputs - block * kLanes));
      kernels.gather(p.weight + (group * s.outputs + block * kLanes) * each, each, lanes, each,
                     packed.get() + (group * s.blocks + block) * each * kLanes, kLanes);
    }
  }
  return packed;
}

}  // namespace

const PathKernels& path_kernels(Isa isa) {
  switch (isa) {
#if defined(CAUSALPRUNE_HAS_AVX2)
    case Isa::avx2: return kPathKernelsAvx2;
#endif
#if defined(CAUSALPRUNE_HAS_AVX512)
    case Isa::avx512: return kPathKernelsAvx512;
#endif
#if defined(CAUSALPRUNE_HAS_NEON)
    case Isa::neon: return kPathKernelsNeon;
#endif
    default: return kPathKernelsScalar;
  }
}

void check_path_geometry(const PathEffectsProblem& p) {
  if (p.groups < 1) fail("groups: expected at least 1, got ", p.groups);
  if (p.n_inputs % p.groups != 0 || p.n_outputs % p.groups != 0) {
    fail("groups: expected a divisor of ", p.n_inputs, " input and ", p.n_outputs,
         " output channels, got ", p.groups);
  }
  const auto axis = [](const char* name, std::int64_t size, std::int64_t kernel,
                       std::int64_t stride, std::int64_t padding, std::int64_t dilation,
                       std::int64_t out) {
    if (kernel < 1) fail("weight: expected a kernel ", name, " of at least 1, got ", kernel);
    if (stride < 1) fail("stride: expected at least 1, got ", stride);
    if (padding < 0) fail("padding: expected at least 0, got ", padding);
    if (dilation < 1) fail("dilation: expected at least 1, got ", dilation);
    // So that none of the products below leaves 64 bits.
    constexpr std::int64_t kLimit = std::numeric_limits<std::int32_t>::max();
    if (stride > kLimit) fail("stride: expected at most ", kLimit, ", got ", stride);
    if (padding > kLimit) fail("padding: expected at most ", kLimit, ", got ", padding);
    if (dilation > kLimit) fail("dilation: expected at most ", kLimit, ", got ", dilation);
    const std::int64_t reach = dilation * (kernel - 1) + 1;
    const std::int64_t room = size + 2 * padding - reach;
    const std::int64_t expected = room < 0 ? 0 : room / stride + 1;
    if (expected != out) {
      fail("pre: expected ", name, " ", expected, " for an input ", name, " of ", size, ", kernel ",
           kernel, ", stride ", stride, ", padding ", padding, ", dilation ", dilation, "; got ",
           out);
    }
  };
  axis("height", p.height, p.kernel_height, p.stride_height, p.padding_height, p.dilation_height,
       p.out_height);
  axis("width", p.width, p.kernel_width, p.stride_width, p.padding_width, p.dilation_width,
       p.out_width);
}

Activation activation_by_name(const char* name) {
  constexpr const char* kNames[] = {"identity", "relu", "gelu", "silu", "hardswish"};
  for (int k = 0; k < 5; ++k) {
    if (std::strcmp(name, kNames[k]) == 0) return static_cast<Activation>(k);
  }
  fail("activation: expected one of identity, relu, gelu, silu, hardswish, got '", name, "'");
}

void path_effects(const PathEffectsProblem& problem, Isa isa, int threads) {
  check_path_geometry(problem);
  if (problem.n_statistics != kEdgeStatistics && problem.n_statistics != 1) {
    fail("edge: expected ", kEdgeStatistics, " statistics or 1, got ", problem.n_statistics);
  }
  const std::int64_t inner = problem.n_inputs / problem.groups;
  const std::int64_t n_unit = checked_product(problem.n_images, problem.n_inputs);
  const std::int64_t n_edge =
      checked_product(checked_product(problem.n_outputs, inner), problem.n_statistics);
  std::fill_n(problem.edge, n_edge, 0.0);
  std::fill_n(problem.unit, n_unit, 0.0);
  if (problem.n_images == 0 || problem.n_inputs == 0 || problem.n_outputs == 0 ||
      problem.height == 0 || problem.width == 0 || problem.out_height == 0 ||
      problem.out_width == 0) {
    return;
  }
  const PathEffectsProblem p = with_rows_joined(problem);
  const PathKernels& kernels = path_kernels(isa);
  const Split s = split_of(p, kernels, std::max(threads, 1));
  const AlignedArray<float> packed = pack_weight(p, s, kernels);
  const Parts edges(p.edge, n_edge, s.image_chunks), units(p.unit, n_unit, s.block_chunks);

  const std::int64_t n_tasks = p.groups * s.block_chunks * s.image_chunks * s.input_chunks;
  const std::int64_t work = checked_product(
      checked_product(p.n_images * p.out_height * p.out_width, p.n_outputs), inner * s.taps);
  const int workers = worker_count(threads, n_tasks, work);
  std::vector<Workspace> workspaces;
  workspaces.reserve(static_cast<std::size_t>(workers));
  for (int k = 0; k < workers; ++k) workspaces.emplace_back(s, p);
  std::atomic<bool> finite{all_finite(p.weight, p.n_outputs * inner * s.taps, 1)};
  parallel_for(workers, n_tasks, [&](int worker, std::int64_t task) {
    Workspace& workspace = workspaces[static_cast<std::size_t>(worker)];
    if (!Task(p, s, kernels, packed.get(), edges.first(), units.first(), workspace).run(task)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite) fail_not_finite(problem);

  edges.add_up();
  units.add_up();
}

}  // namespace causalprune
