// One function for each family, called once from module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace causalprune {

void bind_channel_update(pybind11::module_& module);
void bind_contingencies(pybind11::module_& module);
void bind_cuda_convolutions(pybind11::module_& module);  // in builds with CUDA kernels alone
void bind_information(pybind11::module_& module);
void bind_machine_rates(pybind11::module_& module);
void bind_packed(pybind11::module_& module);
void bind_path_effects(pybind11::module_& module);
void bind_relative_sensitivity(pybind11::module_& module);

}  // namespace causalprune
