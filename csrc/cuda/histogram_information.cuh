// histogram_information on CUDA: the contract of kernels/histogram_information.hpp with pointers on
// the device.
//
// Bins are chosen by the CPU's arithmetic, so that the counts are the CPU's; sums of c log2 c are
// float64 in a fixed order, within 1e-12 bits of the CPU's for N up to 10^6. Counts are added
// atomically as integers: the same bits every time.
//
// Non-finite values. Nothing is read back, so they are not refused: the information of a column
// that has one is NaN.
#pragma once

#include <cstdint>

#include "kernels/histogram_information.hpp"

namespace causalprune {

// Doubles of workspace a problem of these sizes needs; reads no pointer. One byte for every value
// of x and y, and 24 for every column.
std::int64_t histogram_information_cuda_workspace(const HistogramInformationProblem& problem);

// Launches on `stream` of `device` and returns without waiting. Throws std::invalid_argument for
// sizes and bins beyond the limits and CudaError for a failed launch.
void histogram_information_cuda(const HistogramInformationProblem& problem, double* workspace,
                                std::int64_t workspace_doubles, int device, void* stream);

}  // namespace causalprune
