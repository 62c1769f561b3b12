#define CAUSALPRUNE_ISA_SCALAR
#include "kernels/packed_steps_tile.hpp"

namespace causalprune {

const PackedConvolutionKernels kPackedConvolutionScalar = isa_scalar::kPackedConvolution;
const PackedStepKernels kPackedStepsScalar = isa_scalar::kPackedSteps;

}  // namespace causalprune
