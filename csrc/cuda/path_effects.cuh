// path_effects on CUDA: the contract of kernels/path_effects.hpp with pointers on the device.
#pragma once

#include <cstdint>

#include "kernels/path_effects.hpp"

namespace causalprune {

// Doubles of workspace a problem of this shape needs.
std::int64_t path_effects_cuda_workspace(std::int64_t n_images, std::int64_t n_inputs,
                                         std::int64_t n_outputs, std::int64_t groups);

// Launches on `stream` of `device` and returns without waiting. Throws std::invalid_argument for
// sizes that do not fit together and CudaError for a failed launch. Nothing is read back, so
// non-finite input is not refused here: it makes the effects it enters non-finite.
void path_effects_cuda(const PathEffectsProblem& problem, double* workspace,
                       std::int64_t workspace_doubles, int device, void* stream);

}  // namespace causalprune
