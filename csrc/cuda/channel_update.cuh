// channel_update on CUDA: the contract of kernels/channel_update.hpp with pointers on the device.
// Accumulators, order of summation, tolerance and what becomes of values that are not finite are
// those of the CPU, but that a weight which is not finite makes NaN of the padding's zeros.
// Determinism: every output has one owner and one order of summation.
#pragma once

#include "kernels/channel_update.hpp"

namespace causalprune {

// Launches on `stream` of `device` and returns without waiting; needs no workspace. Throws
// std::invalid_argument for sizes that do not fit together and CudaError for a failed launch.
void channel_update_cuda(const ChannelUpdateProblem& problem, int device, void* stream);

}  // namespace causalprune
