// The inner loops of packed convolutions, written once over vec16f and compiled once for each
// instruction set by cpu/packed_<isa>.cpp. Raw pointers only: see common/vec16f.hpp for why.
#pragma once

#include <utility>  // integer_sequence, a type alone

#include "common/vec16f.hpp"
#include "kernels/activations_tile.hpp"
#include "kernels/packed_convolution.hpp"

namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE {

// Positions (of sixteen lanes) a register tile may hold for so many rows: sums, a weight for each
// row and one input have to fit into the registers.
CAUSALPRUNE_INLINE constexpr int most_vectors(int rows) {
#if defined(CAUSALPRUNE_ISA_AVX512)
  return rows == 1 ? 28 : rows == 2 ? 14 : 6;
#elif defined(CAUSALPRUNE_ISA_AVX2)
  return rows == 1 ? 7 : rows == 2 ? 3 : 1;
#elif defined(CAUSALPRUNE_ISA_NEON)
  return rows == 1 ? 7 : rows == 2 ? 3 : 1;
#else
  return rows == 1 ? 2 : 1;
#endif
}

inline constexpr int kMostTileHeight = 4, kMostTileWidth = 28;

CAUSALPRUNE_INLINE constexpr bool has_tile(int rows, int height, int width, int column_stride) {
  if (rows != 1 && rows != 2 && rows != 4) return false;
  if (height * width > most_vectors(rows)) return false;
  if (width > 16 && width != kMostTileWidth) return false;
  return column_stride == 1 || (height <= 2 && width <= 14 && height * width <= 14);
}

CAUSALPRUNE_INLINE vec16f smoothed(PackedActivation activation, vec16f x) {
  switch (activation) {
    case PackedActivation::gelu: return GeluPhi::value(x);
    case PackedActivation::silu: return SiluPhi::value(x);
    default: return HardswishPhi::value(x);
  }
}

__attribute__((noinline)) inline void smooth_tile(float* out, std::int64_t row_floats, int height,
                                                  int width, PackedActivation activation) {
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      float* at = out + y * row_floats + x * kLanes;
      store(at, smoothed(activation, load(at)));
    }
  }
}

#define CAUSALPRUNE_TILE_LOOP(index, count) \
  CAUSALPRUNE_UNROLL_TILE                   \
  for (int index = 0; index < count; ++index)

#if defined(__clang__)
#define CAUSALPRUNE_UNROLL_TILE _Pragma("clang loop unroll(full)")
#else
#define CAUSALPRUNE_UNROLL_TILE _Pragma("GCC unroll 28")
#endif

// Keeps the compiler from holding a register for every position: one pointer and constant
// distances.
template <class T>
CAUSALPRUNE_INLINE T* one_pointer(T* p) {
  asm("" : "+r"(p));
  return p;
}

template <int Rows, int Height, int Width>
struct TileSums {
  vec16f v[Rows][Height][Width];

  // One tap with its weights: `in` is what it reads at the first position.
  CAUSALPRUNE_INLINE void add_tap(const char* in, const vec16f (&w)[Rows], std::int64_t row_bytes,
                                  std::int64_t column_bytes) {
    const char* line = in;
    CAUSALPRUNE_TILE_LOOP(y, Height) {
      CAUSALPRUNE_TILE_LOOP(x, Width) {
        const vec16f value = load(reinterpret_cast<const float*>(line + x * column_bytes));
        CAUSALPRUNE_TILE_LOOP(r, Rows) v[r][y][x] = fmadd(w[r], value, v[r][y][x]);
      }
      if (y + 1 < Height) line = one_pointer(line + row_bytes);
    }
  }

  // The next tap's weights and place are fetched before this one's sums: a quarter faster than in
  // the order of their use, though the processor reorders. Reads one tap beyond the last.
  CAUSALPRUNE_INLINE void add_taps(const char* in, const std::int32_t* offset, const float* weight,
                                   std::int32_t n_taps, std::int64_t row_bytes,
                                   std::int64_t column_bytes) {
    vec16f w[Rows];
    CAUSALPRUNE_TILE_LOOP(r, Rows) w[r] = broadcast(weight[r]);
    const char* at = in + offset[0];
    for (std::int32_t k = 0; k < n_taps; ++k) {
      weight += Rows;
      const char* next = in + offset[k + 1];
      vec16f next_w[Rows];
      CAUSALPRUNE_TILE_LOOP(r, Rows) next_w[r] = broadcast(weight[r]);
      add_tap(at, w, row_bytes, column_bytes);
      at = next;
      CAUSALPRUNE_TILE_LOOP(r, Rows) w[r] = next_w[r];
    }
  }
};

// What comes behind the last tap: residual, clamp, smooth activation.
template <int Rows, int Height, int Width>
CAUSALPRUNE_INLINE void end_tile(const PackedTile& t, std::int32_t row,
                                 TileSums<Rows, Height, Width>& sums) {
  if (t.residual != nullptr) {
    CAUSALPRUNE_TILE_LOOP(r, Rows) {
      const float* line = t.residual + t.channels[row + r] * t.residual_channel_floats;
      CAUSALPRUNE_TILE_LOOP(y, Height) {
        CAUSALPRUNE_TILE_LOOP(x, Width) {
          sums.v[r][y][x] = add(sums.v[r][y][x], load(line + x * kLanes));
        }
        if (y + 1 < Height) line = one_pointer(line + t.residual_row_floats);
      }
    }
  }
  // The sum comes second: that operand is the result where one of them is not a number.
  const vec16f least = broadcast(t.least), most = broadcast(t.most);
  CAUSALPRUNE_TILE_LOOP(r, Rows) {
    CAUSALPRUNE_TILE_LOOP(y, Height) {
      CAUSALPRUNE_TILE_LOOP(x, Width) { sums.v[r][y][x] = min(most, max(least, sums.v[r][y][x])); }
    }
  }
}

template <int Rows, int Height, int Width>
struct TileMemory {
  // Calls body(sum, float* at) for all positions of the rows' channels in `base`.
  template <class Body>
  static CAUSALPRUNE_INLINE void each(TileSums<Rows, Height, Width>& sums,
                                      float* const (&row)[Rows], std::int64_t row_floats,
                                      const Body& body) {
    CAUSALPRUNE_TILE_LOOP(r, Rows) {
      float* line = row[r];
      CAUSALPRUNE_TILE_LOOP(y, Height) {
        CAUSALPRUNE_TILE_LOOP(x, Width) body(sums.v[r][y][x], line + x * kLanes);
        if (y + 1 < Height) line = one_pointer(line + row_floats);
      }
    }
  }
};

// All segments of a part on one tile. ColumnStride 0: any, from the argument.
template <int Rows, int Height, int Width, int ColumnStride>
void run_tile(const PackedTile& t) {
  using Memory = TileMemory<Rows, Height, Width>;
  const std::int64_t column_bytes = ColumnStride > 0 ? ColumnStride * 64 : t.in_column_bytes;
  const std::int64_t row_bytes = t.in_row_bytes, out_row = t.out_row_floats;
  const char* in = reinterpret_cast<const char*>(t.in);
  const std::int32_t* offset = t.offsets;
  const float* value = t.values;
  for (const PackedSegment* s = t.first; s != t.last; ++s) {
    float* out[Rows];
    CAUSALPRUNE_TILE_LOOP(r, Rows) {
      out[r] = t.out + t.channels[s->row + r] * t.out_channel_floats;
    }
    TileSums<Rows, Height, Width> sums;
    if ((s->flags & kFirstSegment) != 0) {
      CAUSALPRUNE_TILE_LOOP(r, Rows) {
        const vec16f bias = broadcast(t.bias[s->row + r]);
        CAUSALPRUNE_TILE_LOOP(y, Height) { CAUSALPRUNE_TILE_LOOP(x, Width) sums.v[r][y][x] = bias; }
      }
    } else {
      Memory::each(sums, out, out_row, [](vec16f& sum, float* at) { sum = load(at); });
    }
    sums.add_taps(in, offset + s->offset, value + s->value, s->n_taps, row_bytes, column_bytes);
    if ((s->flags & kLastSegment) != 0 && t.has_end) end_tile<Rows, Height, Width>(t, s->row, sums);
    Memory::each(sums, out, out_row, [](vec16f& sum, float* at) { store(at, sum); });
    if ((s->flags & kLastSegment) != 0 && t.smooth != PackedActivation::none) {
      for (int r = 0; r < Rows; ++r) smooth_tile(out[r], out_row, Height, Width, t.smooth);
    }
  }
}

#undef CAUSALPRUNE_TILE_LOOP
#undef CAUSALPRUNE_UNROLL_TILE

template <int Rows, int Height, int Width, int ColumnStride>
constexpr PackedTileFunction tile_or_null() {
  if constexpr (has_tile(Rows, Height, Width, ColumnStride)) {
    return &run_tile<Rows, Height, Width, ColumnStride>;
  } else {
    return nullptr;
  }
}

template <int Rows, int ColumnStride, int... I>
PackedTileFunction tile_of(int index, std::integer_sequence<int, I...>) {
  static constexpr PackedTileFunction kTiles[] = {
      tile_or_null<Rows, I / kMostTileWidth + 1, I % kMostTileWidth + 1, ColumnStride>()...};
  return kTiles[index];
}

template <int Rows>
PackedTileFunction tile_with_rows(int height, int width, int column_stride) {
  using Indices = std::make_integer_sequence<int, kMostTileHeight * kMostTileWidth>;
  const int index = (height - 1) * kMostTileWidth + width - 1;
  if (column_stride == 1) return tile_of<Rows, 1>(index, Indices{});
  if (column_stride == 2) return tile_of<Rows, 2>(index, Indices{});
  return tile_of<Rows, 0>(index, Indices{});
}

inline PackedTileFunction packed_tile(int rows, int height, int width, int column_stride) {
  if (height < 1 || height > kMostTileHeight || width < 1 || width > kMostTileWidth) return nullptr;
  switch (rows) {
    case 1: return tile_with_rows<1>(height, width, column_stride);
    case 2: return tile_with_rows<2>(height, width, column_stride);
    case 4: return tile_with_rows<4>(height, width, column_stride);
    default: return nullptr;
  }
}

inline constexpr PackedConvolutionKernels kPackedConvolution{&packed_tile, most_vectors(1)};

}  // namespace causalprune::CAUSALPRUNE_ISA_NAMESPACE
