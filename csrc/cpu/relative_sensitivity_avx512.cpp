#define CAUSALPRUNE_ISA_AVX512
#include "kernels/relative_sensitivity_tile.hpp"

namespace causalprune {

const SensitivityKernels kSensitivityKernelsAvx512 = isa_avx512::kSensitivityKernels;

}  // namespace causalprune
