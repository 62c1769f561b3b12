#define CAUSALPRUNE_ISA_AVX2
#include "kernels/path_effects_tile.hpp"

namespace causalprune {

const PathKernels kPathKernelsAvx2 = isa_avx2::kPathKernels;

}  // namespace causalprune
