// What lies between packed convolutions: into and out of the layout, halos, pooling, sums.
//
// Every step is exact but for the sums: an average adds its window row by row and multiplies by the
// reciprocal of its size, a global average adds lane by lane in a fixed order. float32 throughout;
// tolerance against a float64 oracle: 1e-6 of the sum of absolute values. A maximum is not a number
// where any value of its window is not. The same bits for any number of threads; no state.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "common/isa.hpp"
#include "kernels/packed_convolution.hpp"
#include "kernels/packed_layout.hpp"

namespace causalprune {

// A tensor [N, C, H, W] outside the layout; strides are in floats.
struct PlainView {
  float* data;
  std::int64_t size[4], stride[4];
};

// ---- what each instruction set provides ----

// Up to sixteen neighbours of each of sixteen lines become vectors `step` floats apart; lane l has
// count[l] of them, then zeros. Returns whether all are finite.
struct LinesIn {
  const float* line[kPackedLanes];
  int count[kPackedLanes];
  float* to;
  std::int64_t step;
  int n;
};

struct LinesOut {
  float* line[kPackedLanes];
  int count[kPackedLanes];
  const float* from;
  std::int64_t step;
  int n;
};

// Lane l of the vector at `to` becomes lane from_lane[l] of the vector at `from`, or the outside
// value where that is negative. Offsets are in floats from the first position of the channel.
struct HaloMove {
  std::int64_t to, from;
  std::int32_t table;
};
using HaloTable = std::array<std::int32_t, kPackedLanes>;

struct PoolRow {
  const float* in;  // what the first tap of the first position reads
  float* out;
  std::int64_t in_row_step, in_column_step, tap_row_step, tap_column_step;
  std::int64_t kernel_height, kernel_width, n_positions;
  const float* reciprocal;  // [n_positions][16] of an average, null for a maximum
};

struct CombineRow {
  const float *a, *b;  // b may be null
  float* out;
  std::int64_t n_positions;
  float scale, shift, least, most;
  PackedActivation smooth;
};

struct PackedStepKernels {
  bool (*lines_in)(const LinesIn& lines);
  void (*lines_out)(const LinesOut& lines);
  void (*fill_halo)(float* channel, const HaloMove* moves, std::int64_t n, const HaloTable* tables,
                    float outside);
  void (*pool_row)(const PoolRow& row);
  void (*combine_row)(const CombineRow& row);
  // Adds n vectors to the sixteen sums.
  void (*add_row)(const float* in, std::int64_t n, float* sums);
};

extern const PackedStepKernels kPackedStepsScalar;
extern const PackedStepKernels kPackedStepsAvx2;
extern const PackedStepKernels kPackedStepsAvx512;
extern const PackedStepKernels kPackedStepsNeon;

// ---- the steps ----

// From [N, C, H, W] of any strides. Returns whether all values are finite.
bool pack(const PlainView& from, const PackedLayout& layout, const PackedView& to, Isa isa,
          int threads);

// To [N, C, H, W] of any strides.
void unpack(const PackedLayout& layout, const PackedView& from, const PlainView& to, Isa isa,
            int threads);

// Gives the halo, and what lies beyond the image inside a strip, the values of the neighbouring
// strips, and `outside` beyond the image.
class HaloFill {
 public:
  HaloFill(const PackedLayout& layout, float outside);
  void run(const PackedView& view, Isa isa, int threads) const;

 private:
  PackedLayout layout_;
  float outside_;
  std::vector<HaloMove> moves_;
  std::vector<HaloTable> tables_;
};

struct PoolProblem {
  PackedLayout in, out;
  std::int64_t kernel_height, kernel_width, stride_height, stride_width;
  std::int64_t padding_height, padding_width;
  bool average;
  bool count_padding;  // of an average: padding counts as zeros
};

// A maximum expects a halo of minus infinity, an average one of zeros. Floor mode.
class Pool {
 public:
  explicit Pool(const PoolProblem& problem);
  void run(const PackedView& in, const PackedView& out, Isa isa, int threads) const;

 private:
  PoolProblem p_;
  std::vector<float> reciprocal_;  // [strip_height, strip_width, 16]
};

// activation(scale[c] * (a + b) + shift[c]); `scale` and `shift` may be empty, b without data.
struct CombineProblem {
  PackedLayout layout;
  PackedActivation activation;
  std::vector<float> scale, shift;
};

void combine(const CombineProblem& problem, const PackedView& a, const PackedView& b,
             const PackedView& out, Isa isa, int threads);

// The mean over all positions, into [N, C, 1, 1]. Expects zeros beyond the image inside strips.
void global_average(const PackedLayout& layout, const PackedView& from, const PlainView& to,
                    Isa isa, int threads);

}  // namespace causalprune
