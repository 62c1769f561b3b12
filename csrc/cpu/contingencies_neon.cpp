#define CAUSALPRUNE_WITNESS_BYTES 16
#include "kernels/contingencies_steps.hpp"

namespace causalprune {

const ContingencyKernels kContingencyKernelsNeon = {kWords, &pack, &count};

}  // namespace causalprune
