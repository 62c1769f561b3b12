// The sizes of a relative_sensitivity on CUDA, checked, and how its images are cut into batches.

#include <algorithm>

#include "common/error.hpp"
#include "cuda/sensitivity_tile.cuh"

namespace causalprune::cuda {

namespace {

// Before the inverses: room for the note of negative values, and the alignment.
constexpr std::int64_t kNoteFloats = 4;

ConvolutionProblem geometry_of(const SensitivityProblem& p, const SensitivityOutput& out) {
  ConvolutionProblem c{};
  c.n_images = p.n_images, c.n_inputs = p.n_inputs, c.height = p.height, c.width = p.width;
  c.n_outputs = p.n_outputs, c.out_height = out.height, c.out_width = out.width;
  c.kernel_height = p.kernel_height, c.kernel_width = p.kernel_width;
  c.stride_height = p.stride_height, c.stride_width = p.stride_width;
  c.padding_height = p.padding_height, c.padding_width = p.padding_width;
  c.dilation_height = p.dilation_height, c.dilation_width = p.dilation_width;
  c.groups = p.groups;
  c.x = p.x;
  std::copy_n(p.x_stride, 4, c.x_stride);
  check_convolution(c);
  return c;
}

}  // namespace

SensitivityPlan plan_sensitivity(const SensitivityProblem& p, std::int64_t batch_floats) {
  const SensitivityOutput out = sensitivity_output(p);
  SensitivityPlan plan{};
  SensitivityPart& part = plan.part;
  part.inputs = p.n_inputs / p.groups;
  part.outputs = p.n_outputs / p.groups;
  part.outputs_pitch = ceil_div(part.outputs, 4) * 4;
  part.n_weights = checked_product(part.inputs, checked_product(p.kernel_height, p.kernel_width));
  plan.results = checked_product(p.n_outputs, part.n_weights);
  part.positions = checked_product(out.height, out.width);
  const std::int64_t of_image =
      checked_product(part.positions, checked_product(p.groups, 2 * part.outputs_pitch));
  if (p.n_images == 0 || plan.results == 0 || of_image == 0 || p.height == 0 || p.width == 0) {
    return plan;
  }
  checked_product(p.n_images, part.positions);
  plan.batch = std::clamp<std::int64_t>(batch_floats / of_image, 1, p.n_images);
  plan.workspace_floats = kNoteFloats + checked_product(plan.batch, of_image);
  part.p = geometry_of(p, out);
  part.rows = {p.weight, part.n_weights, p.kernel_height * p.kernel_width, p.kernel_width, 1};
  part.best = reinterpret_cast<unsigned*>(p.sensitivity);
  part.near_channels = near_channels(part.p);
  part.aggregate = p.aggregate;
  return plan;
}

void place_workspace(SensitivityPart& part, float* workspace) {
  part.negative = reinterpret_cast<int*>(workspace);
  part.inverse = workspace + kNoteFloats;
}

}  // namespace causalprune::cuda
