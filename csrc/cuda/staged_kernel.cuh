// The loop around a staged product (staged_product.cuh): one kernel for every kind of work.
//
// A `Work` is what one thread of a block does:
//   Arguments, Shared               what the launch passes; what the block shares
//   Work(arguments, block, thread)
//   wanted(), stages()              the same for all threads of a block
//   lay_columns(shared)             where the block's columns lie
//   lay_inner(shared, stage)        where a stage's inner terms lie; called for each stage in turn
//   fetch(shared, stage)            operands of a stage, from global memory into registers
//   put(shared, stage)              and on into shared memory
//   multiply(shared, stage)
//   finish(shared)
#pragma once

#include <cstdint>

#include "common/error.hpp"
#include "cuda/runtime.cuh"
#include "cuda/staged_product.cuh"

namespace causalprune::cuda {

template <class Work>
__global__ void __launch_bounds__(kProductThreads, Work::kResident)
    staged_product(const typename Work::Arguments arguments) {
  __shared__ typename Work::Shared shared;
  Work work(arguments, blockIdx.x, static_cast<int>(threadIdx.x));
  if (!work.wanted()) return;
  const std::int64_t stages = work.stages();
  work.lay_columns(shared);
  work.lay_inner(shared, 0);
  work.lay_inner(shared, 1);
  __syncthreads();
  work.fetch(shared, 0);
  work.put(shared, 0);
  __syncthreads();
  for (std::int64_t stage = 0; stage < stages; ++stage) {
    // The next stage is under way while this one is multiplied.
    if (stage + 1 < stages) work.fetch(shared, stage + 1);
    work.lay_inner(shared, stage + 2);
    work.multiply(shared, stage);
    if (stage + 1 < stages) work.put(shared, stage + 1);
    __syncthreads();
  }
  work.finish(shared);
}

template <class Work>
void launch_staged(const typename Work::Arguments& arguments, std::int64_t blocks, const char* what,
                   cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;
  if (blocks > kMostBlocks) fail("x: expected fewer than 2**31 blocks on CUDA, got ", blocks);
  if (blocks == 0) return;
  staged_product<Work><<<static_cast<unsigned>(blocks), kProductThreads, 0, stream>>>(arguments);
  check(cudaGetLastError(), what);
}

}  // namespace causalprune::cuda
