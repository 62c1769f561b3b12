// The inner loops of path_effects, written once over vec16f and compiled once for each instruction
// set by cpu/path_effects_<isa>.cpp. Raw pointers only: see common/vec16f.hpp for why.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/path_effects_gather.hpp"
#include "kernels/path_effects_pointwise_tile.hpp"
#include "kernels/path_effects_taps_tile.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

template <class Phi>
void prepare_of(std::int64_t n_positions, float* start, float* after) {
  for (std::int64_t at = 0; at < n_positions * 16; at += 16) {
    vec16f first = load(start + at), second;
    Phi::prepare(first, second);
    store(start + at, first);
    store(after + at, second);
  }
}

// ---- choosing the activation ----

#define CAUSALPRUNE_BY_ACTIVATION(function, ...)                                    \
  switch (activation) {                                                             \
    case Activation::identity: function<Identity>(__VA_ARGS__); break;              \
    case Activation::relu: function<Relu>(__VA_ARGS__); break;                      \
    case Activation::gelu: function<Smooth<GeluPhi>>(__VA_ARGS__); break;           \
    case Activation::silu: function<Smooth<SiluPhi>>(__VA_ARGS__); break;           \
    case Activation::hardswish: function<Smooth<HardswishPhi>>(__VA_ARGS__); break; \
  }

inline void prepare_tile(Activation activation, std::int64_t n_positions, float* start,
                         float* after) {
  CAUSALPRUNE_BY_ACTIVATION(prepare_of, n_positions, start, after)
}

inline void taps_tile(Activation activation, const PathTapsJob& job) {
  CAUSALPRUNE_BY_ACTIVATION(taps_of, job)
}

inline void pointwise_tile(Activation activation, const PathPointwiseJob& job) {
  CAUSALPRUNE_BY_ACTIVATION(pointwise_of, job)
}

#undef CAUSALPRUNE_BY_ACTIVATION

inline constexpr PathKernels kPathKernels = {kPointwiseBlocks, kTapBlocks,    gather_tile,
                                             copy_row,         list_nonzero,  prepare_tile,
                                             taps_tile,        pointwise_tile};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
