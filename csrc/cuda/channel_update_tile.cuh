// channel_update as a staged product: rows are output channels, columns positions, inner terms the
// changed channels' taps, and sums begin at the plain output. Plain arithmetic that a host compiler
// takes too.
#pragma once

#include "cuda/staged_product.cuh"
#include "kernels/channel_update.hpp"

namespace causalprune::cuda {

// A tensor [n_rows, n_outputs, out_height, out_width] with channels innermost.
template <class Value>
struct LastChannels {
  Value* values;
  std::int64_t image_stride, row_stride, column_stride;

  CAUSALPRUNE_HOST_DEVICE std::int64_t offset(const Position& at) const {
    return at.image * image_stride + at.y * row_stride + at.x * column_stride;
  }
};

// What becomes of a finished sum: activation(sum * scale + shift + residual). Null pointers leave
// their part out.
struct UpdateEpilogue {
  const float *scale, *shift;          // [n_outputs]
  LastChannels<const float> residual;  // as out
  bool relu;

  // The residual's element of this output lies at `residual_at`.
  CAUSALPRUNE_HOST_DEVICE float operator()(float sum, std::int64_t output,
                                           std::int64_t residual_at) const {
    float value = sum;
    if (scale != nullptr) value *= scale[output];
    if (shift != nullptr) value += shift[output];
    if (residual.values != nullptr) value += residual.values[residual_at];
    return relu && value <= 0.0f ? 0.0f : value;  // NaN stays NaN
  }
};

struct ChannelUpdateLaunch {
  ConvolutionProblem p;  // geometry; x is the difference and its inputs the changed channels
  FilterRows rows;
  LastChannels<const float> plain;
  LastChannels<float> out;
  UpdateEpilogue epilogue;
  bool by_four;  // whether four neighbouring outputs of plain and of out are aligned to 16 bytes
  bool near_channels;
};

// Throws std::invalid_argument for sizes that do not fit together.
ChannelUpdateLaunch plan_channel_update(const ChannelUpdateProblem& problem);

struct UpdatePlace {
  ColumnStart start;
  std::int64_t plain, out, residual;  // of the position's first channel; out below 0: none
};

CAUSALPRUNE_HOST_DEVICE inline float value_at(const ConvolutionProblem& p, const UpdatePlace& place,
                                              const TapPlace& tap) {
  return value_at(p, place.start, tap.term);
}

template <int Across>
class ChannelUpdates {
 public:
  using Arguments = ChannelUpdateLaunch;
  using Shared = ProductShared<Across, 1, TapPlace, UpdatePlace>;
  static constexpr int kResident = Across == 4 ? 3 : 4;

  CAUSALPRUNE_HOST_DEVICE static std::int64_t blocks(const ChannelUpdateLaunch& a) {
    return ceil_div(a.p.n_outputs, Shared::kRows) *
           ceil_div(a.p.n_images * a.p.out_height * a.p.out_width, Shared::kColumns);
  }

  CAUSALPRUNE_HOST_DEVICE ChannelUpdates(const ChannelUpdateLaunch& a, std::int64_t block,
                                         int thread)
      : a_(a), thread_(thread), mine_(thread_tile<Across>(thread)), walk_(a.p, thread) {
    const std::int64_t row_tiles = ceil_div(a.p.n_outputs, Shared::kRows);
    first_row_ = block % row_tiles * Shared::kRows;
    first_column_ = block / row_tiles * Shared::kColumns;
  }

  CAUSALPRUNE_HOST_DEVICE bool wanted() const { return true; }
  CAUSALPRUNE_HOST_DEVICE std::int64_t stages() const {
    return ceil_div(a_.p.n_inputs * a_.p.kernel_height * a_.p.kernel_width, kStageTerms);
  }

  CAUSALPRUNE_HOST_DEVICE void lay_columns(Shared& shared) const {
    for (int k = thread_; k < Shared::kColumns; k += kProductThreads) {
      const Position at = flat_position(a_.p, first_column_ + k);
      UpdatePlace& place = shared.column[k];
      place = {start_of(a_.p, at), -1, -1, -1};
      if (at.image < 0) continue;
      place.plain = a_.plain.offset(at);
      place.out = a_.out.offset(at);
      place.residual = a_.epilogue.residual.offset(at);
    }
  }

  CAUSALPRUNE_HOST_DEVICE void lay_inner(Shared& shared, std::int64_t stage) {
    if (thread_ < kStageTerms) {
      shared.inner[stage % kTermStages][thread_] = walk_.next(a_.p, a_.rows, 0, a_.p.n_inputs);
    }
  }

  CAUSALPRUNE_HOST_DEVICE void fetch(const Shared& shared, std::int64_t stage) {
    if (stage == 0) read_plain(shared);
    fetch_rows(a_.rows, shared, stage, thread_, first_row_, a_.p.n_outputs, row_);
    fetch_columns(a_.p, shared, stage, thread_, a_.near_channels, column_,
                  [](float v) { return v; });
  }

  CAUSALPRUNE_HOST_DEVICE void put(Shared& shared, std::int64_t stage) const {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < kRowCopies; ++k) {
      const StageSlot slot = stage_slot(thread_ + k * kProductThreads, Shared::kRows, true);
      shared.rows[stage % 2][slot.inner][slot.at] = row_[k];
    }
    put_columns(shared, stage, thread_, a_.near_channels, column_);
  }

  CAUSALPRUNE_HOST_DEVICE void multiply(const Shared& shared, std::int64_t stage) {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < kStageTerms; ++k) {
      each_product<1>(shared.rows[stage % 2][k], 0, shared.columns[stage % 2][k], mine_,
                      [this](int, int i, int j, float weight, float value) {
                        sum_[i][j] = fmaf(weight, value, sum_[i][j]);
                      });
    }
  }

  CAUSALPRUNE_HOST_DEVICE void finish(const Shared& shared) const {
    const std::int64_t row = first_row_ + mine_.row;
    CAUSALPRUNE_DEVICE_UNROLL
    for (int j = 0; j < kWide; ++j) {
      const UpdatePlace& place = shared.column[mine_.column + column_step(j)];
      if (place.out < 0) continue;
      Four four;
      CAUSALPRUNE_DEVICE_UNROLL
      for (int i = 0; i < kTall; ++i) {
        if (row + i >= a_.p.n_outputs) continue;
        four.value[i] = a_.epilogue(sum_[i][j], row + i, place.residual + row + i);
        if (!a_.by_four) a_.out.values[place.out + row + i] = four.value[i];
      }
      if (a_.by_four && row < a_.p.n_outputs) {
        write_four(a_.out.values + place.out + row, four);
      }
    }
  }

 private:
  static constexpr int kRowCopies = kStageTerms * Shared::kRows / kProductThreads;

  CAUSALPRUNE_HOST_DEVICE void read_plain(const Shared& shared) {
    const std::int64_t row = first_row_ + mine_.row;
    CAUSALPRUNE_DEVICE_UNROLL
    for (int j = 0; j < kWide; ++j) {
      const UpdatePlace& place = shared.column[mine_.column + column_step(j)];
      Four four = {};
      if (place.out >= 0 && row < a_.p.n_outputs) {
        const float* from = a_.plain.values + place.plain + row;
        if (a_.by_four) {
          four = *reinterpret_cast<const Four*>(from);
        } else {
          CAUSALPRUNE_DEVICE_UNROLL
          for (int i = 0; i < kTall; ++i) {
            if (row + i < a_.p.n_outputs) four.value[i] = from[i];
          }
        }
      }
      CAUSALPRUNE_DEVICE_UNROLL
      for (int i = 0; i < kTall; ++i) sum_[i][j] = four.value[i];
    }
  }

  const ChannelUpdateLaunch& a_;
  int thread_;
  ThreadTile mine_;
  TapWalk walk_;
  std::int64_t first_row_, first_column_;
  float row_[kRowCopies], column_[kStageTerms * Shared::kColumns / kProductThreads];
  float sum_[kTall][kWide];
};

}  // namespace causalprune::cuda
