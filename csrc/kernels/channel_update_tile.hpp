// The inner loops of channel_update, written once over vec16f and compiled once for each
// instruction set by cpu/channel_update_<isa>.cpp. Raw pointers only: see common/vec16f.hpp for
// why.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/channel_update.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// `Blocks` times sixteen output channels of `Positions` neighbouring positions, all of which see
// the kernel columns [first, last): as many sums at once as hide the latency of a multiply-add.
template <int Blocks, int Positions>
CAUSALPRUNE_INLINE void update_tile(const ChannelUpdateRow& r, std::int64_t position,
                                    std::int64_t first_output, int last_lanes, std::int64_t first,
                                    std::int64_t last) {
  vec16f sum[Positions][Blocks];
  CAUSALPRUNE_UNROLL
  for (int p = 0; p < Positions; ++p) {
    const float* from = r.plain + (position + p) * r.plain_step + first_output;
    CAUSALPRUNE_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      const bool tail = b == Blocks - 1 && last_lanes < kLanes;
      sum[p][b] = tail ? load_first(from + b * kLanes, last_lanes) : load(from + b * kLanes);
    }
  }
  const std::int64_t left = position * r.stride - r.padding;
  const std::int64_t next = r.stride * r.column_step;
  for (std::int64_t c = 0; c < r.n_changed; ++c) {
    for (std::int64_t ky = r.first_row; ky < r.last_row; ++ky) {
      const std::int64_t row = c * r.channel_step + (ky - r.first_row) * r.row_step;
      const float* w =
          r.weight + (c * r.kernel_height + ky) * r.kernel_width * r.lanes + first_output;
      for (std::int64_t kx = first; kx < last; ++kx) {
        const float* x = r.difference + row + (left + kx * r.dilation) * r.column_step;
        vec16f tap[Blocks];
        CAUSALPRUNE_UNROLL
        for (int b = 0; b < Blocks; ++b) tap[b] = load(w + kx * r.lanes + b * kLanes);
        CAUSALPRUNE_UNROLL
        for (int p = 0; p < Positions; ++p) {
          const vec16f value = broadcast(x[p * next]);
          CAUSALPRUNE_UNROLL
          for (int b = 0; b < Blocks; ++b) sum[p][b] = fmadd(value, tap[b], sum[p][b]);
        }
      }
    }
  }
  CAUSALPRUNE_UNROLL
  for (int p = 0; p < Positions; ++p) {
    float* to = r.out + (position + p) * r.out_step + first_output;
    CAUSALPRUNE_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      const vec16f value = r.relu ? max(sum[p][b], zero()) : sum[p][b];
      if (b == Blocks - 1 && last_lanes < kLanes) {
        float lanes[kLanes];
        store(lanes, value);
        for (int k = 0; k < last_lanes; ++k) to[b * kLanes + k] = lanes[k];
      } else {
        store(to + b * kLanes, value);
      }
    }
  }
}

template <int Blocks, int Positions>
CAUSALPRUNE_INLINE void update_outputs(const ChannelUpdateRow& r, std::int64_t first_output,
                                       int last_lanes) {
  const std::int64_t reach = (r.kernel_width - 1) * r.dilation;
  std::int64_t position = 0;
  while (position < r.n_positions) {
    const std::int64_t left = position * r.stride - r.padding;
    const std::int64_t right = left + (Positions - 1) * r.stride + reach;
    if (left >= 0 && right < r.width && position + Positions <= r.n_positions) {
      update_tile<Blocks, Positions>(r, position, first_output, last_lanes, 0, r.kernel_width);
      position += Positions;
      continue;
    }
    const std::int64_t first = left < 0 ? (-left + r.dilation - 1) / r.dilation : 0;
    std::int64_t last = r.kernel_width;
    while (last > first && left + (last - 1) * r.dilation >= r.width) --last;
    update_tile<Blocks, 1>(r, position, first_output, last_lanes, first, last);
    ++position;
  }
}

inline void update_row(const ChannelUpdateRow& r) {
  constexpr int kWide = kColumns >= 4 ? 4 : 1;  // blocks at a time; fewer where registers are few
  std::int64_t output = 0;
  for (; output + kWide * kLanes <= r.n_outputs; output += kWide * kLanes) {
    update_outputs<kWide, kColumns / kWide>(r, output, kLanes);
  }
  for (; output < r.n_outputs; output += kLanes) {
    const std::int64_t left = r.n_outputs - output;
    update_outputs<1, kColumns>(r, output, left < kLanes ? static_cast<int>(left) : kLanes);
  }
}

inline constexpr ChannelUpdateKernels kChannelUpdate = {&update_row};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
