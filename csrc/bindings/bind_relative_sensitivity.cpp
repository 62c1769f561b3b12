#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "common/error.hpp"
#include "kernels/relative_sensitivity.hpp"

namespace py = pybind11;

namespace causalprune {

namespace {

using Pair = std::array<std::int64_t, 2>;

void relative_sensitivity_cpu(py::handle x_, py::handle weight_, py::handle sensitivity_,
                              const std::string& aggregate, Pair stride, Pair padding,
                              Pair dilation, std::int64_t groups, int threads,
                              const std::string& isa) {
  const BorrowedTensor x(x_, "x", "float32", 4), weight(weight_, "weight", "float32", 4);
  BorrowedTensor sensitivity(sensitivity_, "sensitivity", "float32", 4);
  if (groups < 1) fail("groups: expected at least 1, got ", groups);
  weight.expect_contiguous();
  sensitivity.expect_contiguous();
  SensitivityProblem p{};
  p.n_images = x.size(0);
  p.n_inputs = x.size(1);
  p.height = x.size(2);
  p.width = x.size(3);
  p.n_outputs = weight.size(0);
  p.kernel_height = weight.size(2);
  p.kernel_width = weight.size(3);
  weight.expect_shape({p.n_outputs, p.n_inputs / groups, p.kernel_height, p.kernel_width},
                      "[O, I / groups, kh, kw] for the channels of x");
  sensitivity.expect_shape(weight.shape(), "that of weight");
  std::tie(p.stride_height, p.stride_width) = std::tuple_cat(stride);
  std::tie(p.padding_height, p.padding_width) = std::tuple_cat(padding);
  std::tie(p.dilation_height, p.dilation_width) = std::tuple_cat(dilation);
  p.groups = groups;
  p.aggregate = aggregate_by_name(aggregate.c_str());
  p.x = x.floats();
  for (int k = 0; k < 4; ++k) p.x_stride[k] = x.stride(k);
  p.weight = weight.floats();
  p.sensitivity = sensitivity.mutable_floats();
  const Isa variant = isa_by_name(isa);
  py::gil_scoped_release release;
  relative_sensitivity(p, variant, threads);
}

}  // namespace

void bind_relative_sensitivity(py::module_& module) {
  module.def("relative_sensitivity", &relative_sensitivity_cpu, py::arg("x"), py::arg("weight"),
             py::arg("sensitivity"), py::arg("aggregate"), py::arg("stride"), py::arg("padding"),
             py::arg("dilation"), py::arg("groups"), py::arg("threads"), py::arg("isa") = "");
}

}  // namespace causalprune
