#define CAUSALPRUNE_TREE_BYTES 32
#include "kernels/spanning_tree_steps.hpp"

namespace causalprune {

const TreeKernels kTreeKernelsAvx2 = {&add_squares, &step};

}  // namespace causalprune
