#define CAUSALPRUNE_ISA_AVX512
#include "kernels/machine_rates_tile.hpp"

namespace causalprune {

const MachineKernels kMachineAvx512 = isa_avx512::kMachine;

}  // namespace causalprune
