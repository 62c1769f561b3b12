#define CAUSALPRUNE_ISA_AVX512
#include "kernels/channel_update_tile.hpp"

namespace causalprune {

const ChannelUpdateKernels kChannelUpdateAvx512 = isa_avx512::kChannelUpdate;

}  // namespace causalprune
