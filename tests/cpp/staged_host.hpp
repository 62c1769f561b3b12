// Runs a staged product of csrc/cuda on the host: the threads of a block go through each phase one
// after the other, in a drawn order, as csrc/cuda/staged_kernel.cuh lets them between two barriers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/staged_product.cuh"

template <class Work>
void run_block(const typename Work::Arguments& arguments, std::int64_t block, std::mt19937& draw) {
  using causalprune::cuda::kProductThreads;
  std::vector<Work> threads;
  threads.reserve(kProductThreads);
  for (int k = 0; k < kProductThreads; ++k) threads.emplace_back(arguments, block, k);
  if (!threads[0].wanted()) return;
  std::vector<std::size_t> order(kProductThreads);
  std::iota(order.begin(), order.end(), 0);
  const auto phase = [&](const auto& step) {
    std::shuffle(order.begin(), order.end(), draw);
    for (const std::size_t k : order) step(threads[k]);
  };
  const auto shared = std::make_unique<typename Work::Shared>();
  const std::int64_t stages = threads[0].stages();
  phase([&](Work& work) {
    work.lay_columns(*shared);
    work.lay_inner(*shared, 0);
    work.lay_inner(*shared, 1);
  });
  phase([&](Work& work) {
    work.fetch(*shared, 0);
    work.put(*shared, 0);
  });
  for (std::int64_t stage = 0; stage < stages; ++stage) {
    phase([&](Work& work) {
      if (stage + 1 < stages) work.fetch(*shared, stage + 1);
      work.lay_inner(*shared, stage + 2);
      work.multiply(*shared, stage);
      if (stage + 1 < stages) work.put(*shared, stage + 1);
    });
  }
  phase([&](Work& work) { work.finish(*shared); });
}

template <class Work>
void run_staged(const typename Work::Arguments& arguments, std::mt19937& draw) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(Work::blocks(arguments)));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), draw);
  for (const std::int64_t block : order) run_block<Work>(arguments, block, draw);
}
