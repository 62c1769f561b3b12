#define CAUSALPRUNE_ISA_AVX2
#include "kernels/machine_rates_tile.hpp"

namespace causalprune {

const MachineKernels kMachineAvx2 = isa_avx2::kMachine;

}  // namespace causalprune
