#define CAUSALPRUNE_ISA_NEON
#include "kernels/packed_steps_tile.hpp"

namespace causalprune {

const PackedConvolutionKernels kPackedConvolutionNeon = isa_neon::kPackedConvolution;
const PackedStepKernels kPackedStepsNeon = isa_neon::kPackedSteps;

}  // namespace causalprune
