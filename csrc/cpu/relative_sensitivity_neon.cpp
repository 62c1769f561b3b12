#define CAUSALPRUNE_ISA_NEON
#include "kernels/relative_sensitivity_tile.hpp"

namespace causalprune {

const SensitivityKernels kSensitivityKernelsNeon = isa_neon::kSensitivityKernels;

}  // namespace causalprune
