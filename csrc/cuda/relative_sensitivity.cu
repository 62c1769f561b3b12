// Batches of images, and of each its positive and then its negative part: the inverse denominators
// of every position, then the shares, in two staged products. Whether any value was negative is
// noted on the device while the positive part is read; where none was, the blocks of the negative
// part return at once.

#include <algorithm>

#include "common/error.hpp"
#include "cuda/relative_sensitivity.cuh"
#include "cuda/sensitivity_tile.cuh"
#include "cuda/staged_kernel.cuh"

namespace causalprune {

namespace {

using namespace cuda;

// Of the inverse denominators of one batch: what a second-level cache holds about half of.
constexpr std::int64_t kBatchFloats = 16 << 20;
// Blocks that a multiprocessor should get, so that the last of them leave it idle for a short time.
constexpr std::int64_t kWantedBlocks = 4;

void launch_denominators(const SensitivityPart& part, cudaStream_t stream) {
  constexpr const char* kWhat = "relative_sensitivity: denominators";
  switch (choose_across(part.outputs, part.n_images * part.positions)) {
    case 1:
      return launch_staged<Denominators<1>>(part, Denominators<1>::blocks(part), kWhat, stream);
    case 2:
      return launch_staged<Denominators<2>>(part, Denominators<2>::blocks(part), kWhat, stream);
    default:
      return launch_staged<Denominators<4>>(part, Denominators<4>::blocks(part), kWhat, stream);
  }
}

template <class Work>
void launch_shares_of(SensitivityPart part, std::int64_t multiprocessors, cudaStream_t stream) {
  const std::int64_t chunks = ceil_div(multiprocessors * kWantedBlocks, Work::tiles(part));
  part.image_chunk = ceil_div(part.n_images, std::min(chunks, part.n_images));
  launch_staged<Work>(part, Work::blocks(part), "relative_sensitivity: shares", stream);
}

template <int Across>
void launch_shares_across(const SensitivityPart& part, std::int64_t multiprocessors,
                          cudaStream_t stream) {
  // The mean of one position is the position.
  if (part.aggregate == Aggregate::max || part.positions == 1) {
    return launch_shares_of<Shares<Across, true>>(part, multiprocessors, stream);
  }
  launch_shares_of<Shares<Across, false>>(part, multiprocessors, stream);
}

void launch_shares(const SensitivityPart& part, std::int64_t multiprocessors, cudaStream_t stream) {
  switch (choose_across(part.outputs, part.n_weights)) {
    case 1: return launch_shares_across<1>(part, multiprocessors, stream);
    case 2: return launch_shares_across<2>(part, multiprocessors, stream);
    default: return launch_shares_across<4>(part, multiprocessors, stream);
  }
}

}  // namespace

std::int64_t relative_sensitivity_cuda_workspace(const SensitivityProblem& p) {
  return plan_sensitivity(p, kBatchFloats).workspace_floats;
}

void relative_sensitivity_cuda(const SensitivityProblem& p, float* workspace,
                               std::int64_t workspace_floats, int device, void* stream) {
  SensitivityPlan plan = plan_sensitivity(p, kBatchFloats);
  if (workspace_floats < plan.workspace_floats) {
    fail("workspace: expected at least ", plan.workspace_floats, " floats, got ", workspace_floats);
  }
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  constexpr const char* kWhat = "relative_sensitivity";
  const auto bytes = static_cast<std::size_t>(plan.results) * sizeof(float);
  check(cudaMemsetAsync(p.sensitivity, 0, bytes, on), kWhat);
  if (plan.batch == 0) return;
  SensitivityPart& part = plan.part;
  place_workspace(part, workspace);
  check(cudaMemsetAsync(part.negative, 0, sizeof(int), on), kWhat);
  const std::int64_t multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount, device);
  for (part.first_image = 0; part.first_image < p.n_images; part.first_image += plan.batch) {
    part.n_images = std::min(plan.batch, p.n_images - part.first_image);
    for (const bool of_negative : {false, true}) {
      part.of_negative = of_negative;
      launch_denominators(part, on);
      launch_shares(part, multiprocessors, on);
    }
  }
}

}  // namespace causalprune
