#define CAUSALPRUNE_ISA_AVX2
#include "kernels/packed_steps_tile.hpp"

namespace causalprune {

const PackedConvolutionKernels kPackedConvolutionAvx2 = isa_avx2::kPackedConvolution;
const PackedStepKernels kPackedStepsAvx2 = isa_avx2::kPackedSteps;

}  // namespace causalprune
