#define CAUSALPRUNE_ISA_SCALAR
#include "kernels/path_effects_tile.hpp"

namespace causalprune {

const PathKernels kPathKernelsScalar = isa_scalar::kPathKernels;

}  // namespace causalprune
