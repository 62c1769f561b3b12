// What channel_update and relative_sensitivity share on CUDA: a product of rows by columns whose
// inner terms come through shared memory kStageTerms at a time. One of the two operands is read
// from an image on the fly, as a sum of where a position begins and where a tap lies from there.
// Plain arithmetic that a host compiler takes too; the loop around it is staged_kernel.cuh.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/channel_tile.cuh"

namespace causalprune::cuda {

constexpr int kStageTerms = 8;
constexpr int kProductThreads = 128;
constexpr int kTall = 4, kWide = 8;  // rows and columns of one thread
// Terms are laid down two stages ahead, and those of the present stage are still read.
constexpr int kTermStages = 4;
// A row of eight terms and the next one then begin four banks apart: see stage_slot.
constexpr int kSkew = 4;

struct alignas(16) Four {
  float value[4];
};

// To global memory, aligned to 16 bytes. Assigned, nvcc takes four apart.
CAUSALPRUNE_HOST_DEVICE inline void write_four(float* to, const Four& from) {
#if defined(__CUDA_ARCH__)
  const float* v = from.value;
  __stwb(reinterpret_cast<float4*>(to), make_float4(v[0], v[1], v[2], v[3]));
#else
  *reinterpret_cast<Four*>(to) = from;
#endif
}

// Blocks of 64 x 64, 32 x 128 or 16 x 256: `Across` of the four warps lie side by side, and a warp
// is four threads of four rows by eight threads of twice four columns.
template <int Across>
struct ProductBlock {
  static constexpr int kRows = 64 / Across, kColumns = 64 * Across;
};

// The first row and column of a thread.
struct ThreadTile {
  int row, column;
};

template <int Across>
CAUSALPRUNE_HOST_DEVICE ThreadTile thread_tile(int thread) {
  const int lane = thread % kLanes, warp = thread / kLanes;
  return {warp / Across * 16 + lane / 8 * kTall, warp % Across * 64 + lane % 8 * 4};
}

// From a thread's first column to its j-th: two runs of four, so that the loads of a warp meet no
// bank twice.
CAUSALPRUNE_HOST_DEVICE inline int column_step(int j) { return j / 4 * 32 + j % 4; }

// `InnerPlace` and `ColumnPlace`: what an inner term and a column are for the image operand.
template <int Across, int Planes, class InnerPlace, class ColumnPlace>
struct alignas(16) ProductShared {
  static constexpr int kRows = ProductBlock<Across>::kRows;
  static constexpr int kColumns = ProductBlock<Across>::kColumns;
  float rows[2][kStageTerms][Planes * kRows + kSkew];
  float columns[2][kStageTerms][kColumns + kSkew];
  InnerPlace inner[kTermStages][kStageTerms];
  ColumnPlace column[kColumns];
};

// Which element of a stage of `width` rows or columns the k-th copy fills. Either order meets no
// bank of shared memory twice; which one reads neighbours from global memory depends on strides.
struct StageSlot {
  int inner, at;
};

CAUSALPRUNE_HOST_DEVICE inline StageSlot stage_slot(int k, int width, bool inner_fastest) {
  if (inner_fastest) return {k % kStageTerms, k / kStageTerms};
  return {k / width, k % width};
}

// ---- the image operand ----

CAUSALPRUNE_HOST_DEVICE inline InnerTerm no_term() { return {0, kNowhere, kNowhere}; }
CAUSALPRUNE_HOST_DEVICE inline ColumnStart no_start() { return {0, kNowhere, kNowhere}; }

CAUSALPRUNE_HOST_DEVICE inline InnerTerm tap_term(const ConvolutionProblem& p, std::int64_t channel,
                                                  int kernel_row, int kernel_column) {
  const std::int64_t row = kernel_row * p.dilation_height;
  const std::int64_t column = kernel_column * p.dilation_width;
  return {channel * p.x_stride[1] + row * p.x_stride[2] + column * p.x_stride[3],
          static_cast<int>(row), static_cast<int>(column)};
}

CAUSALPRUNE_HOST_DEVICE inline float value_at(const ConvolutionProblem& p, const ColumnStart& start,
                                              const InnerTerm& term) {
  return inside(p, start, term) ? p.x[start.offset + term.offset] : 0.0f;
}
CAUSALPRUNE_HOST_DEVICE inline float value_at(const ConvolutionProblem& p, const InnerTerm& term,
                                              const ColumnStart& start) {
  return value_at(p, start, term);
}

// Whether a step to the next channel is shorter than one to the next output position, and the next
// inner term or column is the next channel.
inline bool near_channels(const ConvolutionProblem& p) {
  if (p.kernel_height * p.kernel_width > 1 || p.n_inputs == 1) return false;
  const int next = p.out_width > 1 ? 3 : (p.out_height > 1 ? 2 : 0);
  return p.x_stride[1] < p.x_stride[next];
}

// Reads a thread's share of a stage of columns; take(value) makes of it what is multiplied.
template <class Shared, int Count, class Take>
CAUSALPRUNE_HOST_DEVICE void fetch_columns(const ConvolutionProblem& p, const Shared& shared,
                                           std::int64_t stage, int thread, bool inner_fastest,
                                           float (&to)[Count], const Take& take) {
  static_assert(Count * kProductThreads == kStageTerms * Shared::kColumns, "one stage");
  CAUSALPRUNE_DEVICE_UNROLL
  for (int k = 0; k < Count; ++k) {
    const StageSlot slot =
        stage_slot(thread + k * kProductThreads, Shared::kColumns, inner_fastest);
    to[k] =
        take(value_at(p, shared.column[slot.at], shared.inner[stage % kTermStages][slot.inner]));
  }
}

template <class Shared, int Count>
CAUSALPRUNE_HOST_DEVICE void put_columns(Shared& shared, std::int64_t stage, int thread,
                                         bool inner_fastest, const float (&from)[Count]) {
  CAUSALPRUNE_DEVICE_UNROLL
  for (int k = 0; k < Count; ++k) {
    const StageSlot slot =
        stage_slot(thread + k * kProductThreads, Shared::kColumns, inner_fastest);
    shared.columns[stage % 2][slot.inner][slot.at] = from[k];
  }
}

// ---- counting without divisions ----

// An index as [major, middle, minor], and how many of the latter two there are.
struct Digits {
  std::int64_t major;
  int middle, minor;
};
struct Radix {
  int middle, minor;
};

CAUSALPRUNE_HOST_DEVICE inline Digits digits_of(std::int64_t index, Radix radix) {
  const std::int64_t rows = index / radix.minor;
  return {rows / radix.middle, static_cast<int>(rows % radix.middle),
          static_cast<int>(index % radix.minor)};
}

// The digits of the sum of two indices.
CAUSALPRUNE_HOST_DEVICE inline Digits sum_of(Digits a, Digits b, Radix radix) {
  Digits sum = {a.major + b.major, a.middle + b.middle, a.minor + b.minor};
  if (sum.minor >= radix.minor) {
    sum.minor -= radix.minor;
    ++sum.middle;
  }
  if (sum.middle >= radix.middle) {
    sum.middle -= radix.middle;
    ++sum.major;
  }
  return sum;
}

// ---- inner terms that are taps of a filter ----

// The weight that a product's rows are filters of; strides in elements.
struct FilterRows {
  const float* weight;
  std::int64_t row_stride, channel_stride, kernel_row_stride, kernel_column_stride;
};

struct TapPlace {
  InnerTerm term;
  std::int64_t weight;  // from the first weight of a row; below 0: none
};

CAUSALPRUNE_HOST_DEVICE inline float value_at(const ConvolutionProblem& p, const ColumnStart& start,
                                              const TapPlace& place) {
  return value_at(p, start, place.term);
}

// The taps that one of the first kStageTerms threads lays down: every kStageTerms-th of
// [channel, kernel row, kernel column].
class TapWalk {
 public:
  CAUSALPRUNE_HOST_DEVICE TapWalk(const ConvolutionProblem& p, int thread)
      : radix_{static_cast<int>(p.kernel_height), static_cast<int>(p.kernel_width)},
        at_(digits_of(thread, radix_)),
        step_(digits_of(kStageTerms, radix_)) {}

  CAUSALPRUNE_HOST_DEVICE TapPlace next(const ConvolutionProblem& p, const FilterRows& rows,
                                        std::int64_t first_channel, std::int64_t n_channels) {
    TapPlace place = {no_term(), -1};
    if (at_.major < n_channels) {
      place = {tap_term(p, first_channel + at_.major, at_.middle, at_.minor),
               at_.major * rows.channel_stride + at_.middle * rows.kernel_row_stride +
                   at_.minor * rows.kernel_column_stride};
    }
    at_ = sum_of(at_, step_, radix_);
    return place;
  }

 private:
  Radix radix_;
  Digits at_, step_;
};

// Reads a thread's share of a stage of rows, from filter `first_row` on.
template <class Shared, int Count>
CAUSALPRUNE_HOST_DEVICE void fetch_rows(const FilterRows& rows, const Shared& shared,
                                        std::int64_t stage, int thread, std::int64_t first_row,
                                        std::int64_t n_rows, float (&to)[Count]) {
  static_assert(Count * kProductThreads == kStageTerms * Shared::kRows, "one stage");
  CAUSALPRUNE_DEVICE_UNROLL
  for (int k = 0; k < Count; ++k) {
    const StageSlot slot = stage_slot(thread + k * kProductThreads, Shared::kRows, true);
    const std::int64_t from = shared.inner[stage % kTermStages][slot.inner].weight;
    const std::int64_t row = first_row + slot.at;
    to[k] = from >= 0 && row < n_rows ? rows.weight[row * rows.row_stride + from] : 0.0f;
  }
}

// ---- the product ----

CAUSALPRUNE_HOST_DEVICE inline void read_run(const float* from, float* to) {
  const Four four = *reinterpret_cast<const Four*>(from);
  CAUSALPRUNE_DEVICE_UNROLL
  for (int k = 0; k < 4; ++k) to[k] = four.value[k];
}

// Calls take(plane, i, j, row value, column value) for every product of one inner term that a
// thread owns. `rows`: those of the first plane; the next plane lies plane_step further.
template <int Planes, class Take>
CAUSALPRUNE_HOST_DEVICE void each_product(const float* rows, int plane_step, const float* columns,
                                          ThreadTile mine, const Take& take) {
  float a[Planes][kTall], b[kWide];
  CAUSALPRUNE_DEVICE_UNROLL
  for (int plane = 0; plane < Planes; ++plane) {
    read_run(rows + plane * plane_step + mine.row, a[plane]);
  }
  CAUSALPRUNE_DEVICE_UNROLL
  for (int j = 0; j < kWide; j += 4) read_run(columns + mine.column + column_step(j), b + j);
  CAUSALPRUNE_DEVICE_UNROLL
  for (int plane = 0; plane < Planes; ++plane) {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CAUSALPRUNE_DEVICE_UNROLL
      for (int j = 0; j < kWide; ++j) take(plane, i, j, a[plane][i], b[j]);
    }
  }
}

// ---- the choice of a block ----

// The least work by a model: what the blocks compute, padding included; wide blocks read a little
// more for every product.
inline int choose_across(std::int64_t rows, std::int64_t columns) {
  constexpr int kChoices[] = {1, 2, 4};
  constexpr double kCost[] = {1.0, 1.05, 1.2};
  int chosen = 1;
  double least = 0.0;
  for (int k = 0; k < 3; ++k) {
    const std::int64_t height = 64 / kChoices[k], width = 64 * kChoices[k];
    const double cost = static_cast<double>(ceil_div(rows, height) * height) *
                        static_cast<double>(ceil_div(columns, width) * width) * kCost[k];
    if (k == 0 || cost < least) {
      least = cost;
      chosen = kChoices[k];
    }
  }
  return chosen;
}

}  // namespace causalprune::cuda
