// One function for each family, called once from module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace causalprune {

void bind_path_effects(pybind11::module_& module);

}  // namespace causalprune
