#include <string>

#include "bindings/bind.hpp"
#include "kernels/machine_rates.hpp"

namespace py = pybind11;

namespace causalprune {

void bind_machine_rates(py::module_& module) {
  module.def(
      "peak_gflops",
      [](const std::string& isa) {
        const Isa variant = isa_by_name(isa);
        py::gil_scoped_release release;
        return peak_gflops(variant);
      },
      py::arg("isa") = "");
  module.def(
      "read_gigabytes_per_second",
      [](std::int64_t bytes, const std::string& isa) {
        const Isa variant = isa_by_name(isa);
        py::gil_scoped_release release;
        return read_gigabytes_per_second(bytes, variant);
      },
      py::arg("bytes"), py::arg("isa") = "");
  module.def("increments_per_second", [] {
    py::gil_scoped_release release;
    return increments_per_second();
  });
}

}  // namespace causalprune
