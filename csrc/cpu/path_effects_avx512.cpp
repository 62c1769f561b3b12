#define CAUSALPRUNE_ISA_AVX512
#include "kernels/path_effects_tile.hpp"

namespace causalprune {

const PathKernels kPathKernelsAvx512 = isa_avx512::kPathKernels;

}  // namespace causalprune
