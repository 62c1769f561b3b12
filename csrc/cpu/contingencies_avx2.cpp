#define CAUSALPRUNE_WITNESS_BYTES 32
#include "kernels/contingencies_steps.hpp"

namespace causalprune {

const ContingencyKernels kContingencyKernelsAvx2 = {kWords, &pack, &count};

}  // namespace causalprune
