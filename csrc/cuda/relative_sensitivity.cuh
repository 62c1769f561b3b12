// relative_sensitivity on CUDA: the contract of kernels/relative_sensitivity.hpp with pointers on
// the device.
//
// Non-finite values. Nothing is read back, so they are not refused: every sensitivity that one
// enters becomes NaN. A value of x that is not finite enters all those of every filter that reads
// it; a weight that is not finite those of its filter and sign (NaN: of its filter); a sum beyond
// float32 those of its filter and sign.
//
// Accumulators, tolerance and threshold are those of the CPU. Determinism: a point has one owner
// and one order of summation, and the maximum over points is one of integers.
#pragma once

#include <cstdint>

#include "kernels/relative_sensitivity.hpp"

namespace causalprune {

// Floats of workspace a problem of these sizes needs; reads no pointer. About 64 MiB at most, or
// what one image takes: large batches are passed in parts.
std::int64_t relative_sensitivity_cuda_workspace(const SensitivityProblem& problem);

// Launches on `stream` of `device` and returns without waiting. The workspace is aligned to 16
// bytes. Throws std::invalid_argument for sizes that do not fit together and CudaError for a failed
// launch.
void relative_sensitivity_cuda(const SensitivityProblem& problem, float* workspace,
                               std::int64_t workspace_floats, int device, void* stream);

}  // namespace causalprune
