#define CAUSALPRUNE_WITNESS_BYTES 8
#include "kernels/contingencies_steps.hpp"

namespace causalprune {

const ContingencyKernels kContingencyKernelsScalar = {kWords, &pack, &count};

}  // namespace causalprune
