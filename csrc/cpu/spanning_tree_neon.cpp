#define CAUSALPRUNE_TREE_BYTES 16
#include "kernels/spanning_tree_steps.hpp"

namespace causalprune {

const TreeKernels kTreeKernelsNeon = {&add_squares, &step};

}  // namespace causalprune
