// Path effects of 1x1 and linear layers: inputs by their lists of what is not zero, or all of a
// group.
#pragma once

#include "kernels/path_effects_sums.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// One input by the list of what is not zero: right where zeros are many.
template <class Phi, bool All, bool Weighted, bool NeedsAbs, int Blocks>
CAUSALPRUNE_INLINE void listed_input(const PathPointwiseJob& job, std::int64_t i) {
  vec16f weight[Blocks];
  EdgeSums<All, Weighted, NeedsAbs> sums[Blocks];
  CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) weight[b] =
      load(job.weight + b * job.weight_block + i * 16);
  const std::int32_t* position = job.position + i * job.list_pitch;
  const float* value = job.value + i * job.list_pitch;
  const auto take = [&](std::int32_t entry) {
    const std::int64_t at = static_cast<std::int64_t>(position[entry]) * (Blocks * 16);
    const vec16f x = broadcast(value[entry]);
    CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
      const std::int64_t block = at + b * 16;
      const vec16f remaining = fnmadd(weight[b], x, load(job.tile.start + block));
      sums[b].take(Phi::change(remaining, load(job.tile.after + block)),
                   weighting_at<Weighted>(job.tile, block));
    }
  };
  float* unit = job.unit + i * 16;
  const std::int32_t count = job.count[i];
  if (job.image_positions == job.tile.n_positions) {
    for (std::int32_t entry = 0; entry < count; ++entry) take(entry);
    CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) sums[b].end_image(unit);
  } else {
    // Entries ascend, so those of one image follow each other.
    std::int32_t entry = 0;
    for (std::int64_t end = job.image_positions; entry < count; end += job.image_positions) {
      for (; entry < count && position[entry] < end; ++entry) take(entry);
      CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) sums[b].end_image(unit);
      unit += job.unit_slot;
    }
  }
  CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
    sums[b].flush(job.partial + (b * job.n_inputs + i) * sums[b].floats);
  }
}

// Several inputs at once, zeros included, so that they share what a position loads.
template <class Phi, bool All, bool Weighted, bool NeedsAbs, int Inputs>
CAUSALPRUNE_INLINE void dense_inputs(const PathPointwiseJob& job, std::int64_t i,
                                     std::int64_t block) {
  vec16f weight[Inputs];
  EdgeSums<All, Weighted, NeedsAbs> sums[Inputs];
  CAUSALPRUNE_UNROLL for (int k = 0; k < Inputs; ++k) weight[k] =
      load(job.weight + block * job.weight_block + (i + k) * 16);
  const float* x = job.dense + i / 16 * job.dense_group + i % 16;
  const std::int64_t step = job.blocks * 16;
  const std::int64_t images = job.tile.n_positions / job.image_positions;
  std::int64_t at = block * 16;
  for (std::int64_t image = 0; image < images; ++image) {
    for (std::int64_t p = 0; p < job.image_positions; ++p, at += step, x += 16) {
      const vec16f start = load(job.tile.start + at), after = load(job.tile.after + at);
      const vec16f weighting = weighting_at<Weighted>(job.tile, at);
      CAUSALPRUNE_UNROLL for (int k = 0; k < Inputs; ++k) {
        const vec16f remaining = fnmadd(weight[k], broadcast(x[k]), start);
        sums[k].take(Phi::change(remaining, after), weighting);
      }
    }
    CAUSALPRUNE_UNROLL for (int k = 0; k < Inputs; ++k) {
      sums[k].end_image(job.unit + image * job.unit_slot + (i + k) * 16);
    }
  }
  CAUSALPRUNE_UNROLL for (int k = 0; k < Inputs; ++k) {
    sums[k].flush(job.partial + (block * job.n_inputs + i + k) * sums[k].floats);
  }
}

template <class Phi, bool All, bool Weighted, bool NeedsAbs, int Blocks>
void pointwise_group(const PathPointwiseJob& job, std::int64_t group) {
  const std::int64_t first = group * 16;
  if (job.dense_group_used[group]) {
    constexpr int inputs = kDenseInputs / (All && kDenseInputs > 1 ? 2 : 1);
    for (std::int64_t b = 0; b < Blocks; ++b) {
      for (std::int64_t i = first; i < first + 16; i += inputs) {
        dense_inputs<Phi, All, Weighted, NeedsAbs, inputs>(job, i, b);
      }
    }
    return;
  }
  const std::int64_t end = first + 16 < job.n_inputs ? first + 16 : job.n_inputs;
  for (std::int64_t i = first; i < end; ++i) {
    if (job.count[i] > 0) listed_input<Phi, All, Weighted, NeedsAbs, Blocks>(job, i);
  }
}

template <class Phi, bool All, bool Weighted, int Blocks>
void pointwise(const PathPointwiseJob& job) {
  for (std::int64_t group = 0; group * 16 < job.n_inputs; ++group) {
    if (Phi::monotone && !job.negative[group]) {
      pointwise_group<Phi, All, Weighted, !Phi::monotone, Blocks>(job, group);
    } else {
      pointwise_group<Phi, All, Weighted, true, Blocks>(job, group);
    }
  }
}

template <class Phi, int Blocks>
void pointwise_blocks(const PathPointwiseJob& job) {
  const bool weighted = job.tile.weighting != nullptr;
  if (job.tile.all_statistics) {
    weighted ? pointwise<Phi, true, true, Blocks>(job) : pointwise<Phi, true, false, Blocks>(job);
  } else {
    weighted ? pointwise<Phi, false, true, Blocks>(job) : pointwise<Phi, false, false, Blocks>(job);
  }
}

template <class Phi>
void pointwise_of(const PathPointwiseJob& job) {
  if (job.blocks == 1) {
    pointwise_blocks<Phi, 1>(job);
  } else {
    pointwise_blocks<Phi, kPointwiseBlocks>(job);
  }
}

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
