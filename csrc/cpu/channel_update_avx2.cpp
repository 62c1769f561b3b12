#define CAUSALPRUNE_ISA_AVX2
#include "kernels/channel_update_tile.hpp"

namespace causalprune {

const ChannelUpdateKernels kChannelUpdateAvx2 = isa_avx2::kChannelUpdate;

}  // namespace causalprune
