#define CAUSALPRUNE_ISA_NEON
#include "kernels/path_effects_tile.hpp"

namespace causalprune {

const PathKernels kPathKernelsNeon = isa_neon::kPathKernels;

}  // namespace causalprune
