#define CAUSALPRUNE_ISA_SCALAR
#include "kernels/machine_rates_tile.hpp"

namespace causalprune {

const MachineKernels kMachineScalar = isa_scalar::kMachine;

}  // namespace causalprune
