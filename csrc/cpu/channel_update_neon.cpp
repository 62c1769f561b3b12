#define CAUSALPRUNE_ISA_NEON
#include "kernels/channel_update_tile.hpp"

namespace causalprune {

const ChannelUpdateKernels kChannelUpdateNeon = isa_neon::kChannelUpdate;

}  // namespace causalprune
