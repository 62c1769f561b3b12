#define CAUSALPRUNE_TREE_BYTES 64
#include "kernels/spanning_tree_steps.hpp"

namespace causalprune {

const TreeKernels kTreeKernelsAvx512 = {&add_squares, &step};

}  // namespace causalprune
