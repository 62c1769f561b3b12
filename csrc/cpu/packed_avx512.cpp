#define CAUSALPRUNE_ISA_AVX512
#include "kernels/packed_steps_tile.hpp"

namespace causalprune {

const PackedConvolutionKernels kPackedConvolutionAvx512 = isa_avx512::kPackedConvolution;
const PackedStepKernels kPackedStepsAvx512 = isa_avx512::kPackedSteps;

}  // namespace causalprune
