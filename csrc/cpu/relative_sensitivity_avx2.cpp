#define CAUSALPRUNE_ISA_AVX2
#include "kernels/relative_sensitivity_tile.hpp"

namespace causalprune {

const SensitivityKernels kSensitivityKernelsAvx2 = isa_avx2::kSensitivityKernels;

}  // namespace causalprune
