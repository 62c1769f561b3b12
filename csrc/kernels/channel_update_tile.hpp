// The inner loops of channel_update, written once over vec16f and compiled once for each
// instruction set by cpu/channel_update_<isa>.cpp. Raw pointers only: see common/vec16f.hpp for
// why.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/channel_update.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// `Blocks` times sixteen output channels of `Positions` neighbouring positions: as many sums at
// once as hide the latency of a multiply-add.
template <int Blocks, int Positions>
CAUSALPRUNE_INLINE void update_tile(const ChannelUpdateStrip& s, const float* plain, float* out,
                                    const float* difference, std::int64_t first_output,
                                    int last_lanes) {
  const bool tail = last_lanes < kLanes;
  vec16f sum[Positions][Blocks];
  CAUSALPRUNE_UNROLL
  for (int p = 0; p < Positions; ++p) {
    const float* from = plain + p * s.plain_position + first_output;
    CAUSALPRUNE_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      sum[p][b] = b == Blocks - 1 && tail ? load_first(from + b * kLanes, last_lanes)
                                          : load(from + b * kLanes);
    }
  }
  const float* weight = s.weight + first_output;
  for (std::int64_t c = 0; c < s.n_changed; ++c) {
    for (std::int64_t ky = 0; ky < s.kernel_height; ++ky) {
      const float* x = difference + c * s.channel_step + ky * s.tap_row_step;
      for (std::int64_t kx = 0; kx < s.kernel_width; ++kx, weight += s.lanes) {
        vec16f tap[Blocks];
        CAUSALPRUNE_UNROLL
        for (int b = 0; b < Blocks; ++b) tap[b] = load(weight + b * kLanes);
        CAUSALPRUNE_UNROLL
        for (int p = 0; p < Positions; ++p) {
          const vec16f value = broadcast(x[kx * s.tap_column_step + p * s.position_step]);
          CAUSALPRUNE_UNROLL
          for (int b = 0; b < Blocks; ++b) sum[p][b] = fmadd(value, tap[b], sum[p][b]);
        }
      }
    }
  }
  CAUSALPRUNE_UNROLL
  for (int p = 0; p < Positions; ++p) {
    float* to = out + p * s.out_position + first_output;
    CAUSALPRUNE_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      const vec16f value = s.relu ? max(sum[p][b], zero()) : sum[p][b];
      if (b == Blocks - 1 && tail) {
        store_first(to + b * kLanes, value, last_lanes);
      } else {
        store(to + b * kLanes, value);
      }
    }
  }
}

// All outputs of some neighbouring positions, so that memory is read and written in its order.
template <int Blocks, int Positions>
CAUSALPRUNE_INLINE void update_outputs(const ChannelUpdateStrip& s, const float* plain, float* out,
                                       const float* difference, std::int64_t output) {
  for (; output + Blocks * kLanes <= s.n_outputs; output += Blocks * kLanes) {
    update_tile<Blocks, Positions>(s, plain, out, difference, output, kLanes);
  }
  if constexpr (Blocks > 1) {
    if (output < s.n_outputs) {
      update_outputs<Blocks / 2, Positions>(s, plain, out, difference, output);
    }
  } else if (output < s.n_outputs) {
    update_tile<1, Positions>(s, plain, out, difference, output,
                              static_cast<int>(s.n_outputs - output));
  }
}

// All positions of a row, the last ones in ever smaller tiles.
template <int Blocks, int Positions>
CAUSALPRUNE_INLINE void update_row(const ChannelUpdateStrip& s, const float* plain, float* out,
                                   const float* difference, std::int64_t n_positions) {
  for (; n_positions >= Positions; n_positions -= Positions) {
    update_outputs<Blocks, Positions>(s, plain, out, difference, 0);
    plain += Positions * s.plain_position;
    out += Positions * s.out_position;
    difference += Positions * s.position_step;
  }
  if constexpr (Positions > 1) {
    if (n_positions > 0) {
      update_row<Blocks, Positions / 2>(s, plain, out, difference, n_positions);
    }
  }
}

template <int Blocks>
void update_rows(const ChannelUpdateStrip& s) {
  for (std::int64_t row = 0; row < s.n_rows; ++row) {
    update_row<Blocks, kUpdateSums / Blocks>(s, s.plain + row * s.plain_row,
                                             s.out + row * s.out_row,
                                             s.difference + row * s.row_step, s.n_positions);
  }
}

inline void update_strip(const ChannelUpdateStrip& s) {
  if (kUpdateSums >= 4 && s.lanes >= 4 * kLanes) {
    update_rows<kUpdateSums >= 4 ? 4 : 1>(s);
  } else if (kUpdateSums >= 4 && s.lanes >= 2 * kLanes) {
    update_rows<kUpdateSums >= 4 ? 2 : 1>(s);
  } else {
    update_rows<1>(s);
  }
}

inline constexpr ChannelUpdateKernels kChannelUpdate = {&update_strip};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
