// The inner loops of path_effects, written once over vec16f and compiled once for each instruction
// set by cpu/path_effects_<isa>.cpp. Raw pointers only: see common/vec16f.hpp for why.
#pragma once

#include "common/vec16f.hpp"
#include "kernels/activations_tile.hpp"
#include "kernels/path_effects.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// An activation gives `value` = phi, and how a tile is prepared from it: d = change(start - c,
// after). `monotone`: with x >= 0 every d of an edge has the sign of -weight, so sum |d| = |sum d|.
struct Identity {
  static constexpr bool monotone = true;
  static constexpr int columns = kColumns;
  static CAUSALPRUNE_INLINE void prepare(vec16f& start, vec16f& after) { start = after = zero(); }
  static CAUSALPRUNE_INLINE vec16f change(vec16f remaining, vec16f) { return remaining; }
};

struct Relu {
  static constexpr bool monotone = true;
  static constexpr int columns = kColumns;
  static CAUSALPRUNE_INLINE void prepare(vec16f& start, vec16f& after) {
    after = sub(zero(), max(start, zero()));
    start = min(start, zero());
  }
  static CAUSALPRUNE_INLINE vec16f change(vec16f remaining, vec16f after) {
    return max(remaining, after);
  }
};

template <class Phi>
struct Smooth {
  static constexpr bool monotone = false;
  static constexpr int columns = kColumns < 2 ? kColumns : 2;
  static CAUSALPRUNE_INLINE void prepare(vec16f& start, vec16f& after) {
    after = Phi::value(start);
  }
  static CAUSALPRUNE_INLINE vec16f change(vec16f remaining, vec16f after) {
    return sub(Phi::value(remaining), after);
  }
};

// The running sums of one edge block in registers: all statistics, or the weighted sum alone.
template <bool All, bool Weighted, bool NeedsAbs>
struct EdgeSums {
  static constexpr int floats = All ? 64 : 16;
  vec16f sum = zero(), absolute = zero(), square = zero(), weighted = zero();

  CAUSALPRUNE_INLINE void take(vec16f d, const PathTile& tile, std::int64_t at) {
    if constexpr (All || !Weighted) sum = add(sum, d);
    if constexpr (All && NeedsAbs) absolute = add(absolute, abs(d));
    if constexpr (All) square = fmadd(d, d, square);
    if constexpr (Weighted) weighted = fmadd(d, load(tile.weighting + at), weighted);
  }

  CAUSALPRUNE_INLINE void flush(float* partial, float* unit) const {
    const vec16f all_weighted = Weighted ? weighted : sum;
    if constexpr (All) {
      store(partial, add(load(partial), sum));
      store(partial + 16, add(load(partial + 16), NeedsAbs ? absolute : abs(sum)));
      store(partial + 32, add(load(partial + 32), square));
    }
    float* last = partial + floats - 16;
    store(last, add(load(last), all_weighted));
    if (unit != nullptr) store(unit, add(load(unit), all_weighted));
  }
};

// ---- several taps ----

// Columns output positions of one row, all taps. Taps9: the nine weights stay in registers and the
// rows are pitch apart; otherwise taps are read from the lists.
template <class Phi, bool All, bool Weighted, bool Taps9, int Columns>
CAUSALPRUNE_INLINE void taps_columns(const PathTapsJob& job, const vec16f* weight9,
                                     const float* weight, const float* x, std::int64_t position,
                                     EdgeSums<All, Weighted, true>& sums) {
  vec16f remaining[Columns];
  CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) remaining[q] =
      load(job.tile.start + (position + q) * 16);
  if constexpr (Taps9) {
    CAUSALPRUNE_UNROLL for (int row = 0; row < 3; ++row) {
      const float* x_row = x + row * job.x_pitch;
      CAUSALPRUNE_UNROLL for (int tap = 0; tap < 3; ++tap) {
        CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) {
          remaining[q] = fnmadd(weight9[row * 3 + tap], broadcast(x_row[tap + q]), remaining[q]);
        }
      }
    }
  } else {
    for (std::int64_t tap = 0; tap < job.n_taps; ++tap) {
      const vec16f w = load(weight + tap * 16);
      const float* x_tap = x + job.tap_offset[tap];
      CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) {
        remaining[q] = fnmadd(w, broadcast(x_tap[q * job.x_column_step]), remaining[q]);
      }
    }
  }
  CAUSALPRUNE_UNROLL for (int q = 0; q < Columns; ++q) {
    const std::int64_t at = (position + q) * 16;
    sums.take(Phi::change(remaining[q], load(job.tile.after + at)), job.tile, at);
  }
}

// The last `rest` columns of a row, at most Columns, in one register tile.
template <class Phi, bool All, bool Weighted, bool Taps9, int Columns>
CAUSALPRUNE_INLINE void taps_rest(const PathTapsJob& job, const vec16f* weight9,
                                  const float* weight, const float* x, std::int64_t position,
                                  std::int64_t rest, EdgeSums<All, Weighted, true>& sums) {
  if constexpr (Columns > 0) {
    if (rest == Columns) {
      taps_columns<Phi, All, Weighted, Taps9, Columns>(job, weight9, weight, x, position, sums);
    } else {
      taps_rest<Phi, All, Weighted, Taps9, Columns - 1>(job, weight9, weight, x, position, rest,
                                                        sums);
    }
  }
}

template <class Phi, bool All, bool Weighted, bool Taps9>
void taps(const PathTapsJob& job) {
  for (std::int64_t i = 0; i < job.n_inputs; ++i) {
    const float* weight = job.weight + i * job.n_taps * 16;
    vec16f weight9[9];
    if constexpr (Taps9) {
      CAUSALPRUNE_UNROLL for (int tap = 0; tap < 9; ++tap) weight9[tap] = load(weight + tap * 16);
    }
    EdgeSums<All, Weighted, true> sums;
    for (std::int64_t row = 0; row < job.rows; ++row) {
      const float* x = job.x + i * job.x_plane + row * job.x_row_step;
      const std::int64_t first = row * job.columns;
      std::int64_t column = 0;
      for (; column + Phi::columns <= job.columns; column += Phi::columns) {
        taps_columns<Phi, All, Weighted, Taps9, Phi::columns>(
            job, weight9, weight, x + column * job.x_column_step, first + column, sums);
      }
      taps_rest<Phi, All, Weighted, Taps9, Phi::columns - 1>(
          job, weight9, weight, x + column * job.x_column_step, first + column,
          job.columns - column, sums);
    }
    sums.flush(job.partial + i * sums.floats, job.unit + i * 16);
  }
}

template <class Phi, bool All>
void taps_wanted(const PathTapsJob& job) {
  const bool weighted = job.tile.weighting != nullptr;
  if constexpr (Phi::monotone) {
    if (job.dense_3x3) {
      weighted ? taps<Phi, All, true, true>(job) : taps<Phi, All, false, true>(job);
      return;
    }
  }
  weighted ? taps<Phi, All, true, false>(job) : taps<Phi, All, false, false>(job);
}

template <class Phi>
void taps_of(const PathTapsJob& job) {
  job.tile.all_statistics ? taps_wanted<Phi, true>(job) : taps_wanted<Phi, false>(job);
}

// ---- one tap ----

template <class Phi, bool All, bool Weighted, bool NeedsAbs, bool Slots, int Blocks>
CAUSALPRUNE_INLINE void pointwise_input(const PathPointwiseJob& job, std::int64_t i) {
  vec16f weight[Blocks];
  EdgeSums<All, Weighted, NeedsAbs> sums[Blocks];
  CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) weight[b] =
      load(job.weight + b * job.weight_block + i * 16);
  const std::int32_t* position = job.position + i * job.list_pitch;
  const float* value = job.value + i * job.list_pitch;
  float* unit = job.unit + i * 16;
  const std::int32_t count = job.count[i];
  for (std::int32_t entry = 0; entry < count;) {
    // Entries ascend, so those of one image follow each other: its sum stays in registers.
    const std::int32_t image = Slots ? job.image_slot[position[entry]] : 0;
    vec16f of_image[Blocks];
    CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) of_image[b] = zero();
    do {
      const std::int64_t at = static_cast<std::int64_t>(position[entry]) * (Blocks * 16);
      const vec16f x = broadcast(value[entry]);
      CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
        const std::int64_t block = at + b * 16;
        const vec16f remaining = fnmadd(weight[b], x, load(job.tile.start + block));
        const vec16f d = Phi::change(remaining, load(job.tile.after + block));
        sums[b].take(d, job.tile, block);
        if constexpr (Slots && Weighted) {
          of_image[b] = fmadd(d, load(job.tile.weighting + block), of_image[b]);
        } else if constexpr (Slots) {
          of_image[b] = add(of_image[b], d);
        }
      }
      ++entry;
    } while (entry < count && (!Slots || job.image_slot[position[entry]] == image));
    if constexpr (Slots) {
      float* slot = unit + image * job.unit_slot;
      CAUSALPRUNE_UNROLL for (int b = 1; b < Blocks; ++b) of_image[0] =
          add(of_image[0], of_image[b]);
      store(slot, add(load(slot), of_image[0]));
    }
  }
  CAUSALPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
    sums[b].flush(job.partial + (b * job.n_inputs + i) * sums[b].floats, Slots ? nullptr : unit);
  }
}

template <class Phi, bool All, bool Weighted, bool Slots, int Blocks>
void pointwise(const PathPointwiseJob& job) {
  for (std::int64_t i = 0; i < job.n_inputs; ++i) {
    if (job.count[i] == 0) continue;
    if (Phi::monotone && !job.negative[i]) {
      pointwise_input<Phi, All, Weighted, !Phi::monotone, Slots, Blocks>(job, i);
    } else {
      pointwise_input<Phi, All, Weighted, true, Slots, Blocks>(job, i);
    }
  }
}

template <class Phi, bool All, bool Weighted, int Blocks>
void pointwise_slots(const PathPointwiseJob& job) {
  if (job.image_slot != nullptr) {
    pointwise<Phi, All, Weighted, true, Blocks>(job);
  } else {
    pointwise<Phi, All, Weighted, false, Blocks>(job);
  }
}

template <class Phi, int Blocks>
void pointwise_blocks(const PathPointwiseJob& job) {
  const bool weighted = job.tile.weighting != nullptr;
  if (job.tile.all_statistics) {
    weighted ? pointwise_slots<Phi, true, true, Blocks>(job)
             : pointwise_slots<Phi, true, false, Blocks>(job);
  } else {
    weighted ? pointwise_slots<Phi, false, true, Blocks>(job)
             : pointwise_slots<Phi, false, false, Blocks>(job);
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

template <class Phi>
void prepare_of(std::int64_t n_positions, float* start, float* after) {
  for (std::int64_t at = 0; at < n_positions * 16; at += 16) {
    vec16f first = load(start + at), second;
    Phi::prepare(first, second);
    store(start + at, first);
    store(after + at, second);
  }
}

// ---- bringing a tile in ----

// n positions of up to sixteen channels, [lanes, n] to [n, to_step]; missing lanes become zero.
inline bool gather_tile(const float* from, std::int64_t channel_step, int lanes, std::int64_t n,
                        float* to, std::int64_t to_step) {
  vec16f witness = zero();
  for (std::int64_t at = 0; at < n; at += 16) {
    const int count = n - at < 16 ? static_cast<int>(n - at) : 16;
    vec16f block[16];
    CAUSALPRUNE_UNROLL for (int lane = 0; lane < 16; ++lane) {
      block[lane] = zero();
      if (lane < lanes) {
        const float* row = from + lane * channel_step + at;
        block[lane] = count == 16 ? load(row) : load_first(row, count);
      }
      // Stays zero as long as all values are finite.
      witness = fmadd(block[lane], zero(), witness);
    }
    transpose(block);
    CAUSALPRUNE_UNROLL for (int k = 0; k < 16; ++k) {
      if (k < count) store(to + (at + k) * to_step, block[k]);
    }
  }
  return !any_nonfinite(witness);
}

inline bool list_nonzero(const PathListJob& job) {
  bool finite = true;
  for (std::int64_t i = 0; i < job.n_inputs; ++i) {
    const float* x = job.x + i * job.x_plane;
    // Channels are far apart in memory, where no hardware prefetcher follows.
    for (std::int32_t k = 0; k < job.n; k += 16) __builtin_prefetch(x + 8 * job.x_plane + k);
    const std::int64_t at = i * job.list_pitch + job.count[i];
    Signs signs;
    job.count[i] +=
        compress_nonzero(x, job.n, job.first_position, job.position + at, job.value + at, signs);
    job.negative[i] |= signs.negative ? 1 : 0;
    finite &= signs.finite;
  }
  return finite;
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

inline constexpr PathKernels kPathKernels = {kPointwiseBlocks, gather_tile, list_nonzero,
                                             prepare_tile,     taps_tile,   pointwise_tile};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
