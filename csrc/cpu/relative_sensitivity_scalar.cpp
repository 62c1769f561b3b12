#define CAUSALPRUNE_ISA_SCALAR
#include "kernels/relative_sensitivity_tile.hpp"

namespace causalprune {

const SensitivityKernels kSensitivityKernelsScalar = isa_scalar::kSensitivityKernels;

}  // namespace causalprune
