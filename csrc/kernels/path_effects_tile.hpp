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

// The running sums of one edge block in registers: all statistics, or the weighted sum alone. The
// last one is taken by image, which is what a unit's sum is made of.
template <bool All, bool Weighted, bool NeedsAbs>
struct EdgeSums {
  static constexpr int floats = All ? 64 : 16;
  vec16f sum = zero(), absolute = zero(), square = zero(), last = zero(), image = zero();

  CAUSALPRUNE_INLINE void take(vec16f d, vec16f weighting) {
    if constexpr (All) {
      sum = add(sum, d);
      square = fmadd(d, d, square);
    }
    if constexpr (All && NeedsAbs) absolute = add(absolute, abs(d));
    image = Weighted ? fmadd(d, weighting, image) : add(image, d);
  }

  CAUSALPRUNE_INLINE void end_image(float* unit) {
    store(unit, add(load(unit), image));
    last = add(last, image);
    image = zero();
  }

  CAUSALPRUNE_INLINE void flush(float* partial) const {
    if constexpr (All) {
      store(partial, add(load(partial), sum));
      store(partial + 16, add(load(partial + 16), NeedsAbs ? absolute : abs(sum)));
      store(partial + 32, add(load(partial + 32), square));
    }
    store(partial + floats - 16, add(load(partial + floats - 16), last));
  }
};

template <bool Weighted>
CAUSALPRUNE_INLINE vec16f weighting_at(const PathTile& tile, std::int64_t at) {
  return Weighted ? load(tile.weighting + at) : zero();
}

// ---- several taps ----

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

// ---- one tap ----

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

// Tells whether all of n values, which it copies, were finite.
inline bool copy_row(const float* from, std::int64_t n, float* to) {
  vec16f witness = zero();
  std::int64_t at = 0;
  for (; at + 16 <= n; at += 16) {
    const vec16f value = load(from + at);
    store(to + at, value);
    witness = fmadd(value, zero(), witness);
  }
  if (at < n) {
    const vec16f value = load_first(from + at, static_cast<int>(n - at));
    store_first(to + at, value, static_cast<int>(n - at));
    witness = fmadd(value, zero(), witness);
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
    job.negative[i / 16] |= signs.negative ? 1 : 0;
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

inline constexpr PathKernels kPathKernels = {kPointwiseBlocks, kTapBlocks,    gather_tile,
                                             copy_row,         list_nonzero,  prepare_tile,
                                             taps_tile,        pointwise_tile};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
