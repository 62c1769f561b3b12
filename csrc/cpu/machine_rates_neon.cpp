#define CAUSALPRUNE_ISA_NEON
#include "kernels/machine_rates_tile.hpp"

namespace causalprune {

const MachineKernels kMachineNeon = isa_neon::kMachine;

}  // namespace causalprune
