// Relative sensitivity: how large a share of an output each single weight carries.
//
// Formula. With W+ = max(W, 0), W- = max(-W, 0) and a_f(p) the input value that weight position f
// (input channel and tap) reads at output position p,
//     share_if(p)   = |W_if| a_f(p) / sum over f' of |W^s_if'| a_f'(p)      s = the sign of W_if
//     g_if          = max over points of (mean or max over p) of share_if(p)
// Every image is a point; an image with negative values is two: its positive part, and the negative
// part with its sign turned. A sum of at most kSmallestDenominator makes the share zero.
//
// Layout. The sixteen lanes are output channels, the input value is a broadcast scalar: no sum or
// maximum runs across lanes, and any kernel size, stride and dilation takes the same loops. A tile
// of output positions is passed twice: once over f for the denominators, once over p for the
// shares, as (sum, x) or (max, x) products in registers. [O, F, P] is never materialised.
//
// Accumulators. float32 over at most kWeightChunk weight positions or kTilePositions output
// positions, then float32 again over those partial sums. All terms are of one sign, so nothing
// cancels. Tolerance against a float64 oracle: 3e-5 relative, where no denominator is near the
// threshold.
//
// Limits. Inputs must be finite, and so must the denominators in float32 (checked). Workspace a
// thread: one group's padded image twice, 2 * 16 floats for each weight position, and one copy of
// the weight.
//
// Determinism. A point has one owner and one order of summation, and the maximum over points does
// not depend on their order: the same bits for any number of threads. Thread safety: no state;
// concurrent calls are independent.
#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace causalprune {

// How the shares of a point are aggregated over output positions.
enum class Aggregate : int { mean, max };

// Throws std::invalid_argument that lists the known names.
Aggregate aggregate_by_name(const char* name);

// float32's machine epsilon: the threshold of the method's published code.
inline constexpr float kSmallestDenominator = 1.1920929e-7f;

// Strides are in elements; weight and sensitivity are contiguous.
struct SensitivityProblem {
  std::int64_t n_images, n_inputs, height, width;
  std::int64_t n_outputs;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_height, stride_width;
  std::int64_t padding_height, padding_width;
  std::int64_t dilation_height, dilation_width;
  std::int64_t groups;
  Aggregate aggregate;
  const float* x;
  std::int64_t x_stride[4];
  const float* weight;  // [n_outputs, n_inputs / groups, kernel_height, kernel_width]
  float* sensitivity;   // as weight
};

struct SensitivityOutput {
  std::int64_t height, width;
};

// Of the layer's output. Throws std::invalid_argument for sizes that do not fit together.
SensitivityOutput sensitivity_output(const SensitivityProblem& problem);

// Fills sensitivity. `threads` is an upper bound; small problems run on the calling thread, as does
// everything inside an OpenMP parallel region. Throws std::invalid_argument for sizes that do not
// fit together, for non-finite input and for denominators beyond float32, std::bad_alloc when the
// workspace cannot be had.
void relative_sensitivity(const SensitivityProblem& problem, Isa isa, int threads);

// ---- what each instruction set provides ----

inline constexpr std::int64_t kTilePositions = 128;
inline constexpr std::int64_t kWeightChunk = 256;

// Some output positions of one point, and one block of 16 output channels.
struct SensitivityTile {
  std::int64_t n_positions;      // at most kTilePositions
  const std::int64_t* position;  // [n_positions] elements of x from the first position to this one
  std::int64_t n_weights;        // weight positions f
  const std::int64_t* tap;       // [n_weights] elements of x from the first weight position to f
  const float* x;                // the point's values, none of them negative
  const float* weight;           // [n_weights, 16]
  float* inverse;                // [n_positions, 2, 16] room for 1 / denominator
  float* total;                  // [n_weights, 16] sum or maximum so far of a / denominator
};

struct SensitivityKernels {
  // Takes a tile's positions into `total`. Tells whether all denominators were finite.
  bool (*tile)(Aggregate aggregate, const SensitivityTile& tile);
  // best = max(best, scale * |weight| * total), [n_weights, 16].
  void (*raise)(std::int64_t n_weights, const float* weight, const float* total, float scale,
                float* best);
};

extern const SensitivityKernels kSensitivityKernelsScalar;
extern const SensitivityKernels kSensitivityKernelsAvx2;
extern const SensitivityKernels kSensitivityKernelsAvx512;
extern const SensitivityKernels kSensitivityKernelsNeon;

}  // namespace causalprune
