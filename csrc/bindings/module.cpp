#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bind.hpp"
#include "common/isa.hpp"

#if defined(CAUSALPRUNE_WITH_CUDA)
#include "cuda/device.cuh"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  module.doc() = "causalprune's compiled kernels. Imported by causalprune._native alone.";
  module.attr("version") = CAUSALPRUNE_VERSION;
  module.attr("compiler") = CAUSALPRUNE_COMPILER;
#if defined(CAUSALPRUNE_WITH_CUDA)
  module.attr("with_cuda") = true;
  module.def("cuda_status", [] {
    const causalprune::CudaStatus status = causalprune::cuda_status();
    return py::make_tuple(status.runtime_version, status.device_count, status.message);
  });
#else
  module.attr("with_cuda") = false;
#endif
#if defined(_OPENMP)
  module.attr("with_openmp") = true;
#else
  module.attr("with_openmp") = false;
#endif
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (const causalprune::Isa isa : causalprune::available_isas()) {
      names.emplace_back(causalprune::isa_name(isa));
    }
    return names;
  });
  module.def("chosen_isa",
             [] { return std::string(causalprune::isa_name(causalprune::chosen_isa())); });
  causalprune::bind_channel_update(module);
  causalprune::bind_contingencies(module);
#if defined(CAUSALPRUNE_WITH_CUDA)
  causalprune::bind_cuda_convolutions(module);
#endif
  causalprune::bind_information(module);
  causalprune::bind_machine_rates(module);
  causalprune::bind_packed(module);
  causalprune::bind_path_effects(module);
  causalprune::bind_relative_sensitivity(module);
}
