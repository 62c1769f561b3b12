#define CAUSALPRUNE_ISA_SCALAR
#include "kernels/channel_update_tile.hpp"

namespace causalprune {

const ChannelUpdateKernels kChannelUpdateScalar = isa_scalar::kChannelUpdate;

}  // namespace causalprune
