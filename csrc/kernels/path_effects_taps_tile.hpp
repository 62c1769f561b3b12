// Path effects of inputs that are seen through a kernel of several taps.
#pragma once

#include "kernels/path_effects_sums.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// Columns output positions of one row, all taps, Blocks output blocks that share the input's
// broadcasts. Taps9: the nine weights stay in registers and the rows are pitch apart, of which
// those from First to before Last may be other than zero; otherwise taps are read from the lists.
template <class Phi, bool All, bool Weighted, bool Taps9, int Blocks, int First, int Last,
          int Columns>
CAUSALPRUNE_INLINE void taps_columns(const PathTapsJob& job, const vec16f* weight9,
                                     const float* weight, const float* x, std::int64_t position,
                                     EdgeSums<All, Weighted, true>* sums) {
  vec16f remaining[Blocks][Columns];
  CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
    CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) remaining[b][q] =
        load(job.tile.start + ((position + q) * Blocks + b) * 16);
  }
  if constexpr (Taps9) {
    CAUSALPRUNE_UNROLL for (int row = First; row < Last; ++row) {
      const float* x_row = x + row * job.x_pitch;
      CAUSALPRUNE_UNROLL for (int tap = 0; tap < 3; ++tap) {
        CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) {
          const vec16f value = broadcast(x_row[tap + q]);
          CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
            remaining[b][q] = fnmadd(weight9[b * 9 + row * 3 + tap], value, remaining[b][q]);
          }
        }
      }
    }
  } else {
    for (std::int64_t tap = 0; tap < job.n_taps; ++tap) {
      const float* x_tap = x + job.tap_offset[tap];
      CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
        const vec16f w = load(weight + b * job.weight_block + tap * 16);
        CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) {
          remaining[b][q] = fnmadd(w, broadcast(x_tap[q * job.x_column_step]), remaining[b][q]);
        }
      }
    }
  }
  CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) {
    CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
      const std::int64_t at = ((position + q) * Blocks + b) * 16;
      sums[b].take(Phi::change(remaining[b][q], load(job.tile.after + at)),
                   weighting_at<Weighted>(job.tile, at));
    }
  }
}

// The last `rest` columns of a row, at most Columns, in one register tile.
template <class Phi, bool All, bool Weighted, bool Taps9, int Blocks, int First, int Last,
          int Columns>
CAUSALPRUNE_INLINE void taps_rest(const PathTapsJob& job, const vec16f* weight9,
                                  const float* weight, const float* x, std::int64_t position,
                                  std::int64_t rest, EdgeSums<All, Weighted, true>* sums) {
  if constexpr (Columns > 0) {
    if (rest == Columns) {
      taps_columns<Phi, All, Weighted, Taps9, Blocks, First, Last, Columns>(job, weight9, weight, x,
                                                                            position, sums);
    } else {
      taps_rest<Phi, All, Weighted, Taps9, Blocks, First, Last, Columns - 1>(
          job, weight9, weight, x, position, rest, sums);
    }
  }
}

template <class Phi, bool All, bool Weighted, bool Taps9, int Blocks, int First, int Last>
CAUSALPRUNE_INLINE void taps_row(const PathTapsJob& job, const vec16f* weight9, const float* weight,
                                 const float* x, std::int64_t position,
                                 EdgeSums<All, Weighted, true>* sums) {
  constexpr int columns = Blocks == 1 ? Phi::columns : kColumns / Blocks / (All ? 2 : 1);
  std::int64_t column = 0;
  for (; column + columns <= job.columns; column += columns) {
    taps_columns<Phi, All, Weighted, Taps9, Blocks, First, Last, columns>(
        job, weight9, weight, x + column * job.x_column_step, position + column, sums);
  }
  taps_rest<Phi, All, Weighted, Taps9, Blocks, First, Last, columns - 1>(
      job, weight9, weight, x + column * job.x_column_step, position + column, job.columns - column,
      sums);
}

template <class Phi, bool All, bool Weighted, bool Taps9, int Blocks>
void taps(const PathTapsJob& job) {
  for (std::int64_t i = 0; i < job.n_inputs; ++i) {
    const float* weight = job.weight + i * job.n_taps * 16;
    vec16f weight9[9 * Blocks];
    if constexpr (Taps9) {
      CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
        CAUSALPRUNE_UNROLL for (int tap = 0; tap < 9; ++tap) weight9[b * 9 + tap] =
            load(weight + b * job.weight_block + tap * 16);
      }
    }
    EdgeSums<All, Weighted, true> sums[Blocks];
    for (std::int64_t row = 0; row < job.rows; ++row) {
      const float* x = job.x + i * job.x_plane + row * job.x_row_step;
      const std::int64_t position = row * job.columns;
      if constexpr (Taps9) {
        if (row < job.zero_rows_above) {
          taps_row<Phi, All, Weighted, true, Blocks, 1, 3>(job, weight9, weight, x, position, sums);
          continue;
        }
        if (row >= job.rows - job.zero_rows_below) {
          taps_row<Phi, All, Weighted, true, Blocks, 0, 2>(job, weight9, weight, x, position, sums);
          continue;
        }
      }
      taps_row<Phi, All, Weighted, Taps9, Blocks, 0, 3>(job, weight9, weight, x, position, sums);
    }
    CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
      sums[b].end_image(job.unit + i * 16);
      sums[b].flush(job.partial + (b * job.n_inputs + i) * sums[b].floats);
    }
  }
}

template <class Phi, bool All, bool Weighted>
void taps_wanted(const PathTapsJob& job) {
  if constexpr (Phi::monotone) {
    if (job.dense_3x3) {
      job.blocks == 1 ? taps<Phi, All, Weighted, true, 1>(job)
                      : taps<Phi, All, Weighted, true, kTapBlocks>(job);
      return;
    }
  }
  taps<Phi, All, Weighted, false, 1>(job);
}

template <class Phi>
void taps_of(const PathTapsJob& job) {
  const bool weighted = job.tile.weighting != nullptr;
  if (job.tile.all_statistics) {
    weighted ? taps_wanted<Phi, true, true>(job) : taps_wanted<Phi, true, false>(job);
  } else {
    weighted ? taps_wanted<Phi, false, true>(job) : taps_wanted<Phi, false, false>(job);
  }
}

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
