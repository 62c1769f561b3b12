#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "common/error.hpp"
#include "kernels/relative_sensitivity.hpp"

#if defined(CAUSALPRUNE_WITH_CUDA)
#include "cuda/relative_sensitivity.cuh"
#endif

namespace py = pybind11;

namespace causalprune {

namespace {

using Pair = std::array<std::int64_t, 2>;

// Sizes alone; pointers and strides are the caller's to fill in.
SensitivityProblem problem_of(const std::vector<std::int64_t>& x,
                              const std::vector<std::int64_t>& weight, Pair stride, Pair padding,
                              Pair dilation, std::int64_t groups) {
  if (groups < 1) fail("groups: expected at least 1, got ", groups);
  SensitivityProblem p{};
  p.n_images = x[0], p.n_inputs = x[1], p.height = x[2], p.width = x[3];
  p.n_outputs = weight[0], p.kernel_height = weight[2], p.kernel_width = weight[3];
  std::tie(p.stride_height, p.stride_width) = std::tuple_cat(stride);
  std::tie(p.padding_height, p.padding_width) = std::tuple_cat(padding);
  std::tie(p.dilation_height, p.dilation_width) = std::tuple_cat(dilation);
  p.groups = groups;
  return p;
}

struct Borrowed {
  BorrowedTensor x, weight, sensitivity;

  Borrowed(py::handle x_, py::handle weight_, py::handle sensitivity_, std::int32_t device)
      : x(x_, "x", "float32", 4, device),
        weight(weight_, "weight", "float32", 4, device),
        sensitivity(sensitivity_, "sensitivity", "float32", 4, device) {}

  SensitivityProblem problem(const std::string& aggregate, Pair stride, Pair padding, Pair dilation,
                             std::int64_t groups) const {
    SensitivityProblem p = problem_of(x.shape(), weight.shape(), stride, padding, dilation, groups);
    weight.expect_contiguous();
    sensitivity.expect_contiguous();
    weight.expect_shape({p.n_outputs, p.n_inputs / groups, p.kernel_height, p.kernel_width},
                        "[O, I / groups, kh, kw] for the channels of x");
    sensitivity.expect_shape(weight.shape(), "that of weight");
    p.aggregate = aggregate_by_name(aggregate.c_str());
    p.x = x.floats();
    for (int k = 0; k < 4; ++k) p.x_stride[k] = x.stride(k);
    p.weight = weight.floats();
    p.sensitivity = sensitivity.mutable_floats();
    return p;
  }
};

void relative_sensitivity_cpu(py::handle x, py::handle weight, py::handle sensitivity,
                              const std::string& aggregate, Pair stride, Pair padding,
                              Pair dilation, std::int64_t groups, int threads,
                              const std::string& isa) {
  const Borrowed borrowed(x, weight, sensitivity, kDlCpu);
  const SensitivityProblem problem = borrowed.problem(aggregate, stride, padding, dilation, groups);
  const Isa variant = isa_by_name(isa);
  py::gil_scoped_release release;
  relative_sensitivity(problem, variant, threads);
}

#if defined(CAUSALPRUNE_WITH_CUDA)
void relative_sensitivity_on_cuda(py::handle x, py::handle weight, py::handle sensitivity,
                                  py::handle workspace, const std::string& aggregate, Pair stride,
                                  Pair padding, Pair dilation, std::int64_t groups) {
  const Borrowed borrowed(x, weight, sensitivity, kDlCuda);
  const BorrowedTensor scratch(workspace, "workspace", "float32", 1, kDlCuda);
  borrowed.weight.expect_same_device(borrowed.x);
  borrowed.sensitivity.expect_same_device(borrowed.x);
  scratch.expect_same_device(borrowed.x);
  scratch.expect_contiguous();
  const SensitivityProblem problem = borrowed.problem(aggregate, stride, padding, dilation, groups);
  const std::int32_t device = borrowed.x.device_id();
  void* stream = current_stream(x, device);
  py::gil_scoped_release release;
  relative_sensitivity_cuda(problem, scratch.mutable_floats(), scratch.size(0), device, stream);
}

std::int64_t relative_sensitivity_cuda_workspace_floats(const std::array<std::int64_t, 4>& x,
                                                        const std::array<std::int64_t, 4>& weight,
                                                        Pair stride, Pair padding, Pair dilation,
                                                        std::int64_t groups) {
  return relative_sensitivity_cuda_workspace(problem_of(
      {x.begin(), x.end()}, {weight.begin(), weight.end()}, stride, padding, dilation, groups));
}
#endif

}  // namespace

void bind_relative_sensitivity(py::module_& module) {
  module.def("relative_sensitivity", &relative_sensitivity_cpu, py::arg("x"), py::arg("weight"),
             py::arg("sensitivity"), py::arg("aggregate"), py::arg("stride"), py::arg("padding"),
             py::arg("dilation"), py::arg("groups"), py::arg("threads"), py::arg("isa") = "");
#if defined(CAUSALPRUNE_WITH_CUDA)
  module.def("relative_sensitivity_cuda", &relative_sensitivity_on_cuda, py::arg("x"),
             py::arg("weight"), py::arg("sensitivity"), py::arg("workspace"), py::arg("aggregate"),
             py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"));
  module.def("relative_sensitivity_cuda_workspace", &relative_sensitivity_cuda_workspace_floats,
             py::arg("x_shape"), py::arg("weight_shape"), py::arg("stride"), py::arg("padding"),
             py::arg("dilation"), py::arg("groups"));
#endif
}

}  // namespace causalprune
