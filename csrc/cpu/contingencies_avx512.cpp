#define CAUSALPRUNE_WITNESS_BYTES 64
#include "kernels/contingencies_steps.hpp"

namespace causalprune {

const ContingencyKernels kContingencyKernelsAvx512 = {kWords, &pack, &count};

}  // namespace causalprune
