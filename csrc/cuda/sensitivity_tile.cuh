// relative_sensitivity as two staged products. Plain arithmetic that a host compiler takes too.
//
// Denominators: rows are filters, columns positions of several images, inner terms weight
// positions f; the weight is laid down as two planes, one for each sign. What is written is the
// inverse of each sum. Shares: rows are filters, columns weight positions, inner terms positions,
// and the inverses are the rows, both signs again; then |weight| * total goes into the maximum.
#pragma once

#include <cstring>

#include "cuda/staged_product.cuh"
#include "kernels/relative_sensitivity.hpp"

namespace causalprune::cuda {

// Positions that are added up before they go into a total, and weights likewise, so that no sum of
// float32 grows long.
constexpr std::int64_t kRunStages = kTilePositions / kStageTerms;
constexpr std::int64_t kWeightStages = kWeightChunk / kStageTerms;

// One part (positive or negative) of a batch of images.
struct SensitivityPart {
  ConvolutionProblem p;  // geometry, groups and x of all images
  FilterRows rows;       // as the denominators read them
  float* inverse;        // [groups, positions of the batch, 2, outputs_pitch]
  int* negative;         // not zero once a value below zero was read
  unsigned* best;        // the bits of the sensitivity so far, as the weight
  bool of_negative;      // the negative part, with its sign turned
  bool near_channels;    // neighbours in memory are channels rather than positions
  Aggregate aggregate;
  std::int64_t first_image, n_images;
  std::int64_t inputs, outputs, outputs_pitch;  // of a group; the pitch is a multiple of four
  std::int64_t n_weights, positions;            // f and p
  std::int64_t image_chunk;                     // images of one block of shares
};

struct SensitivityPlan {
  SensitivityPart part;           // all of it but the workspace and the batch
  std::int64_t batch;             // images at a time; 0: every sensitivity is zero
  std::int64_t workspace_floats;  // for one batch
  std::int64_t results;           // sensitivities
};

// As many images a batch as have their inverse denominators in `batch_floats`, but at least one.
// Throws std::invalid_argument for sizes that do not fit together.
SensitivityPlan plan_sensitivity(const SensitivityProblem& problem, std::int64_t batch_floats);

// `workspace`: plan.workspace_floats, aligned to 16 bytes.
void place_workspace(SensitivityPart& part, float* workspace);

// ---- values: whatever is not finite becomes NaN and stays it ----

CAUSALPRUNE_HOST_DEVICE inline float positive_part(float v) { return !(v <= 0.0f) ? v : 0.0f; }
CAUSALPRUNE_HOST_DEVICE inline float negative_part(float v) { return !(v >= 0.0f) ? -v : 0.0f; }

CAUSALPRUNE_HOST_DEVICE inline float inverse_of(float sum) {
  if (sum <= kSmallestDenominator) return 0.0f;
  return sum < HUGE_VALF ? 1.0f / sum : sum - sum;
}

CAUSALPRUNE_HOST_DEVICE inline unsigned bits_of(float v) {
  unsigned bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}

// Of values that are not negative the bits are ordered as they are, and NaN is above them all.
CAUSALPRUNE_HOST_DEVICE inline float larger(float a, float b) {
  const unsigned left = bits_of(a), right = bits_of(b), bits = left > right ? left : right;
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

CAUSALPRUNE_HOST_DEVICE inline void raise(unsigned* best, float share) {
  const unsigned bits = bits_of(share);
  if (bits <= *best) return;  // mostly: a maximum over many images settles soon
#if defined(__CUDA_ARCH__)
  atomicMax(best, bits);
#else
  *best = bits;
#endif
}

// ---- the denominators ----

template <int Across>
class Denominators {
 public:
  using Arguments = SensitivityPart;
  using Shared = ProductShared<Across, 2, TapPlace, ColumnStart>;
  static constexpr int kResident = 2;

  CAUSALPRUNE_HOST_DEVICE static std::int64_t blocks(const SensitivityPart& a) {
    return ceil_div(a.outputs, Shared::kRows) * a.p.groups *
           ceil_div(a.n_images * a.positions, Shared::kColumns);
  }

  CAUSALPRUNE_HOST_DEVICE Denominators(const SensitivityPart& a, std::int64_t block, int thread)
      : a_(a), thread_(thread), mine_(thread_tile<Across>(thread)), walk_(a.p, thread) {
    const std::int64_t row_tiles = ceil_div(a.outputs, Shared::kRows);
    first_row_ = block % row_tiles * Shared::kRows;
    group_ = block / row_tiles % a.p.groups;
    first_column_ = block / row_tiles / a.p.groups * Shared::kColumns;
  }

  CAUSALPRUNE_HOST_DEVICE bool wanted() const { return !a_.of_negative || *a_.negative != 0; }
  CAUSALPRUNE_HOST_DEVICE std::int64_t stages() const {
    return ceil_div(a_.n_weights, kStageTerms);
  }

  CAUSALPRUNE_HOST_DEVICE void lay_columns(Shared& shared) const {
    for (int k = thread_; k < Shared::kColumns; k += kProductThreads) {
      const std::int64_t position = first_column_ + k;
      shared.column[k] = position < a_.n_images * a_.positions
                             ? column_start(a_.p, a_.first_image * a_.positions + position)
                             : no_start();
    }
  }

  CAUSALPRUNE_HOST_DEVICE void lay_inner(Shared& shared, std::int64_t stage) {
    if (thread_ < kStageTerms) {
      shared.inner[stage % kTermStages][thread_] =
          walk_.next(a_.p, a_.rows, group_ * a_.inputs, a_.inputs);
    }
  }

  CAUSALPRUNE_HOST_DEVICE void fetch(const Shared& shared, std::int64_t stage) {
    fetch_rows(a_.rows, shared, stage, thread_, group_ * a_.outputs + first_row_,
               (group_ + 1) * a_.outputs, row_);
    fetch_columns(a_.p, shared, stage, thread_, a_.near_channels, column_, [this](float v) {
      seen_negative_ |= v < 0.0f;
      return a_.of_negative ? negative_part(v) : positive_part(v);
    });
  }

  CAUSALPRUNE_HOST_DEVICE void put(Shared& shared, std::int64_t stage) const {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < kRowCopies; ++k) {
      const StageSlot slot = stage_slot(thread_ + k * kProductThreads, Shared::kRows, true);
      float* to = shared.rows[stage % 2][slot.inner] + slot.at;
      to[0] = positive_part(row_[k]);
      to[Shared::kRows] = negative_part(row_[k]);
    }
    put_columns(shared, stage, thread_, a_.near_channels, column_);
  }

  CAUSALPRUNE_HOST_DEVICE void multiply(const Shared& shared, std::int64_t stage) {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < kStageTerms; ++k) {
      each_product<2>(shared.rows[stage % 2][k], Shared::kRows, shared.columns[stage % 2][k], mine_,
                      [this](int plane, int i, int j, float weight, float value) {
                        sum_[plane][i][j] = fmaf(weight, value, sum_[plane][i][j]);
                      });
    }
    if (stage % kWeightStages == kWeightStages - 1) add_up();
  }

  CAUSALPRUNE_HOST_DEVICE void finish(const Shared&) {
    add_up();
    const std::int64_t row = first_row_ + mine_.row, n_columns = a_.n_images * a_.positions;
    CAUSALPRUNE_DEVICE_UNROLL
    for (int j = 0; j < kWide; ++j) {
      const std::int64_t column = first_column_ + mine_.column + column_step(j);
      if (row >= a_.outputs_pitch || column >= n_columns) continue;
      CAUSALPRUNE_DEVICE_UNROLL
      for (int plane = 0; plane < 2; ++plane) {
        Four four;
        CAUSALPRUNE_DEVICE_UNROLL
        for (int i = 0; i < kTall; ++i) four.value[i] = inverse_of(total_[plane][i][j]);
        const std::int64_t to =
            ((group_ * n_columns + column) * 2 + plane) * a_.outputs_pitch + row;
        write_four(a_.inverse + to, four);
      }
    }
    if (seen_negative_) *a_.negative = 1;  // all that write write this
  }

 private:
  static constexpr int kRowCopies = kStageTerms * Shared::kRows / kProductThreads;

  CAUSALPRUNE_HOST_DEVICE void add_up() {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < 2 * kTall * kWide; ++k) {
      float& sum = sum_[k / (kTall * kWide)][k / kWide % kTall][k % kWide];
      total_[k / (kTall * kWide)][k / kWide % kTall][k % kWide] += sum;
      sum = 0.0f;
    }
  }

  const SensitivityPart& a_;
  int thread_;
  ThreadTile mine_;
  TapWalk walk_;
  std::int64_t group_, first_row_, first_column_;
  bool seen_negative_ = false;
  float row_[kRowCopies], column_[kStageTerms * Shared::kColumns / kProductThreads];
  float sum_[2][kTall][kWide] = {}, total_[2][kTall][kWide] = {};
};

// ---- the shares ----

// What ends with a stage.
enum class StageEnd : int { nothing, run, image };

struct SharePlace {
  ColumnStart start;
  std::int64_t position;  // within the batch; below 0: none
  StageEnd end;           // of the stage; the first term's counts
};

CAUSALPRUNE_HOST_DEVICE inline float value_at(const ConvolutionProblem& p, const InnerTerm& term,
                                              const SharePlace& place) {
  return value_at(p, place.start, term);
}

// The mean is taken image by image, and stages do not cross images. For the maximum all positions
// of a block's images are one row.
template <int Across, bool Max>
class Shares {
 public:
  using Arguments = SensitivityPart;
  using Shared = ProductShared<Across, 2, SharePlace, InnerTerm>;
  static constexpr int kResident = 2;

  CAUSALPRUNE_HOST_DEVICE static std::int64_t tiles(const SensitivityPart& a) {
    return ceil_div(a.outputs, Shared::kRows) * ceil_div(a.n_weights, Shared::kColumns) *
           a.p.groups;
  }
  CAUSALPRUNE_HOST_DEVICE static std::int64_t blocks(const SensitivityPart& a) {
    return tiles(a) * ceil_div(a.n_images, a.image_chunk);
  }

  CAUSALPRUNE_HOST_DEVICE Shares(const SensitivityPart& a, std::int64_t block, int thread)
      : a_(a),
        thread_(thread),
        mine_(thread_tile<Across>(thread)),
        radix_{static_cast<int>(a.p.out_height), static_cast<int>(a.p.out_width)},
        step_(digits_of(kStageTerms, radix_)) {
    const std::int64_t row_tiles = ceil_div(a.outputs, Shared::kRows);
    const std::int64_t column_tiles = ceil_div(a.n_weights, Shared::kColumns);
    first_row_ = block % row_tiles * Shared::kRows;
    first_column_ = block / row_tiles % column_tiles * Shared::kColumns;
    group_ = block / row_tiles / column_tiles % a.p.groups;
    const std::int64_t first = block / row_tiles / column_tiles / a.p.groups * a.image_chunk;
    const std::int64_t left = a.n_images - first;
    const std::int64_t n_images = a.image_chunk < left ? a.image_chunk : left;
    row_length_ = Max ? n_images * a.positions : a.positions;
    n_images_ = Max ? 1 : n_images;
    first_image_ = a.first_image + first;
    first_position_ = first * a.positions;
    begin_image();
  }

  CAUSALPRUNE_HOST_DEVICE bool wanted() const { return !a_.of_negative || *a_.negative != 0; }
  CAUSALPRUNE_HOST_DEVICE std::int64_t stages() const {
    return n_images_ * ceil_div(row_length_, kStageTerms);
  }

  CAUSALPRUNE_HOST_DEVICE void lay_columns(Shared& shared) const {
    const Radix taps = {static_cast<int>(a_.p.kernel_height), static_cast<int>(a_.p.kernel_width)};
    for (int k = thread_; k < Shared::kColumns; k += kProductThreads) {
      const Digits at = digits_of(first_column_ + k, taps);
      shared.column[k] = first_column_ + k < a_.n_weights
                             ? tap_term(a_.p, group_ * a_.inputs + at.major, at.middle, at.minor)
                             : no_term();
    }
  }

  CAUSALPRUNE_HOST_DEVICE void lay_inner(Shared& shared, std::int64_t stage) {
    if (thread_ >= kStageTerms) return;
    const std::int64_t within = stage_ * kStageTerms + thread_;
    const bool there = within < row_length_ && image_ < n_images_;
    const bool last = (stage_ + 1) * kStageTerms >= row_length_;
    const std::int64_t image = first_image_ + image_ + at_.major;
    shared.inner[stage % kTermStages][thread_] = {
        there ? start_of(a_.p, {image, at_.middle, at_.minor}) : no_start(),
        there ? first_position_ + image_ * a_.positions + within : -1,
        last ? StageEnd::image
             : (stage_ % kRunStages == kRunStages - 1 ? StageEnd::run : StageEnd::nothing)};
    at_ = sum_of(at_, step_, radix_);
    ++stage_;
    if (last) {
      ++image_;
      begin_image();
    }
  }

  CAUSALPRUNE_HOST_DEVICE void fetch(const Shared& shared, std::int64_t stage) {
    const std::int64_t n_columns = a_.n_images * a_.positions;
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < kRowCopies; ++k) {
      const RowSlot slot = row_slot(k);
      const std::int64_t position =
          slot.inner < kStageTerms ? shared.inner[stage % kTermStages][slot.inner].position : -1;
      const std::int64_t row = first_row_ + slot.row;
      row_[k] = Four{};
      if (position < 0 || row >= a_.outputs_pitch) continue;
      const std::int64_t from =
          ((group_ * n_columns + position) * 2 + slot.plane) * a_.outputs_pitch + row;
      row_[k] = *reinterpret_cast<const Four*>(a_.inverse + from);
    }
    fetch_columns(a_.p, shared, stage, thread_, !a_.near_channels, column_,
                  [this](float v) { return a_.of_negative ? negative_part(v) : positive_part(v); });
  }

  CAUSALPRUNE_HOST_DEVICE void put(Shared& shared, std::int64_t stage) const {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < kRowCopies; ++k) {
      const RowSlot slot = row_slot(k);
      if (slot.inner >= kStageTerms) continue;
      float* to = shared.rows[stage % 2][slot.inner] + slot.plane * Shared::kRows + slot.row;
      *reinterpret_cast<Four*>(to) = row_[k];
    }
    put_columns(shared, stage, thread_, !a_.near_channels, column_);
  }

  CAUSALPRUNE_HOST_DEVICE void multiply(const Shared& shared, std::int64_t stage) {
    CAUSALPRUNE_DEVICE_UNROLL
    for (int k = 0; k < kStageTerms; ++k) {
      each_product<2>(shared.rows[stage % 2][k], Shared::kRows, shared.columns[stage % 2][k], mine_,
                      [this](int plane, int i, int j, float inverse, float value) {
                        float& found = found_[plane][i][j];
                        found = Max ? larger(found, inverse * value) : fmaf(inverse, value, found);
                      });
    }
    if (Max) return;
    const StageEnd end = shared.inner[stage % kTermStages][0].end;
    if (end != StageEnd::nothing) end_run(end == StageEnd::image);
  }

  CAUSALPRUNE_HOST_DEVICE void finish(const Shared&) {
    if (Max) end_run(true);
  }

 private:
  static constexpr int kRowFours = kStageTerms * 2 * Shared::kRows / 4;
  static constexpr int kRowCopies = (kRowFours + kProductThreads - 1) / kProductThreads;

  struct RowSlot {
    int inner, plane, row;
  };
  CAUSALPRUNE_HOST_DEVICE RowSlot row_slot(int k) const {
    constexpr int kFours = Shared::kRows / 4;
    const int at = thread_ + k * kProductThreads;
    return {at / (2 * kFours), at / kFours % 2, at % kFours * 4};
  }

  CAUSALPRUNE_HOST_DEVICE void begin_image() {
    stage_ = 0;
    at_ = digits_of(thread_, radix_);
  }

  // Of both signs each weight takes the sums of its own. A maximum has no runs.
  CAUSALPRUNE_HOST_DEVICE void end_run(bool end_of_image) {
    const float scale = Max ? 1.0f : 1.0f / static_cast<float>(a_.positions);
    CAUSALPRUNE_DEVICE_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CAUSALPRUNE_DEVICE_UNROLL
      for (int j = 0; j < kWide; ++j) {
        const std::int64_t row = first_row_ + mine_.row + i;
        const std::int64_t column = first_column_ + mine_.column + column_step(j);
        if (row < a_.outputs && column < a_.n_weights) {
          const std::int64_t at = (group_ * a_.outputs + row) * a_.n_weights + column;
          const float weight = a_.rows.weight[at];
          total_[i][j] += weight < 0.0f ? found_[1][i][j] : found_[0][i][j];
          if (end_of_image) {
            raise(a_.best + at, fabsf(weight) * total_[i][j] * scale);
            total_[i][j] = 0.0f;
          }
        }
        found_[0][i][j] = found_[1][i][j] = 0.0f;
      }
    }
  }

  const SensitivityPart& a_;
  int thread_;
  ThreadTile mine_;
  Radix radix_;
  Digits step_, at_;                // of the position that this thread lays down
  std::int64_t image_ = 0, stage_;  // the image at hand and the stage within it
  std::int64_t n_images_, row_length_, first_image_, first_position_;
  std::int64_t group_, first_row_, first_column_;
  Four row_[kRowCopies];
  float column_[kStageTerms * Shared::kColumns / kProductThreads];
  float found_[2][kTall][kWide] = {}, total_[kTall][kWide] = {};
};

}  // namespace causalprune::cuda
