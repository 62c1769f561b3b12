#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <tuple>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "common/error.hpp"
#include "kernels/path_effects.hpp"

#if defined(CAUSALPRUNE_WITH_CUDA)
#include "cuda/path_effects.cuh"
#endif

namespace py = pybind11;

namespace causalprune {

namespace {

using Pair = std::array<std::int64_t, 2>;

struct Borrowed {
  BorrowedTensor x, weight, pre;
  std::optional<BorrowedTensor> grad;
  BorrowedTensor edge, unit;

  Borrowed(py::handle x_, py::handle weight_, py::handle pre_, py::handle grad_, py::handle edge_,
           py::handle unit_, std::int32_t device)
      : x(x_, "x", "float32", 4, device),
        weight(weight_, "weight", "float32", 4, device),
        pre(pre_, "pre", "float32", 4, device),
        edge(edge_, "edge", "float64", 3, device),
        unit(unit_, "unit", "float64", 2, device) {
    if (!grad_.is_none()) grad.emplace(grad_, "grad", "float32", 4, device);
  }

  PathEffectsProblem problem(const std::string& activation, Pair stride, Pair padding,
                             Pair dilation, std::int64_t groups) const {
    if (groups < 1) fail("groups: expected at least 1, got ", groups);
    weight.expect_contiguous();
    edge.expect_contiguous();
    unit.expect_contiguous();
    PathEffectsProblem p{};
    p.n_images = x.size(0);
    p.n_inputs = x.size(1);
    p.height = x.size(2);
    p.width = x.size(3);
    p.n_outputs = weight.size(0);
    p.kernel_height = weight.size(2);
    p.kernel_width = weight.size(3);
    weight.expect_shape({p.n_outputs, p.n_inputs / groups, p.kernel_height, p.kernel_width},
                        "[O, I / groups, kh, kw] for the channels of x");
    p.out_height = pre.size(2);
    p.out_width = pre.size(3);
    pre.expect_shape({p.n_images, p.n_outputs, p.out_height, p.out_width},
                     "[N, O, Ho, Wo] for the images of x and the outputs of weight");
    p.n_statistics = edge.size(2) == 1 ? 1 : kEdgeStatistics;
    edge.expect_shape({p.n_outputs, p.n_inputs / groups, p.n_statistics},
                      "[O, I / groups, 4 or 1]");
    unit.expect_shape({p.n_images, p.n_inputs}, "[N, I]");
    std::tie(p.stride_height, p.stride_width) = std::tuple_cat(stride);
    std::tie(p.padding_height, p.padding_width) = std::tuple_cat(padding);
    std::tie(p.dilation_height, p.dilation_width) = std::tuple_cat(dilation);
    p.groups = groups;
    check_path_geometry(p);  // before grad is held against pre: the one at fault is named
    if (grad) grad->expect_shape(pre.shape(), "that of pre");
    p.activation = activation_by_name(activation.c_str());
    p.x = x.floats();
    p.weight = weight.floats();
    p.pre = pre.floats();
    p.grad = grad ? grad->floats() : nullptr;
    for (int k = 0; k < 4; ++k) {
      p.x_stride[k] = x.stride(k);
      p.pre_stride[k] = pre.stride(k);
      p.grad_stride[k] = grad ? grad->stride(k) : 0;
    }
    p.edge = edge.doubles();
    p.unit = unit.doubles();
    return p;
  }
};

void path_effects_cpu(py::handle x, py::handle weight, py::handle pre, py::handle grad,
                      py::handle edge, py::handle unit, const std::string& activation, Pair stride,
                      Pair padding, Pair dilation, std::int64_t groups, int threads,
                      const std::string& isa) {
  const Borrowed borrowed(x, weight, pre, grad, edge, unit, kDlCpu);
  const PathEffectsProblem problem =
      borrowed.problem(activation, stride, padding, dilation, groups);
  const Isa variant = isa_by_name(isa);
  py::gil_scoped_release release;
  path_effects(problem, variant, threads);
}

#if defined(CAUSALPRUNE_WITH_CUDA)
void path_effects_on_cuda(py::handle x, py::handle weight, py::handle pre, py::handle grad,
                          py::handle edge, py::handle unit, py::handle workspace,
                          const std::string& activation, Pair stride, Pair padding, Pair dilation,
                          std::int64_t groups) {
  const Borrowed borrowed(x, weight, pre, grad, edge, unit, kDlCuda);
  const BorrowedTensor scratch(workspace, "workspace", "float64", 1, kDlCuda);
  const PathEffectsProblem problem =
      borrowed.problem(activation, stride, padding, dilation, groups);
  const std::int32_t device = borrowed.x.device_id();
  void* stream = current_stream(x, device);
  py::gil_scoped_release release;
  path_effects_cuda(problem, scratch.doubles(), scratch.size(0), device, stream);
}

std::int64_t path_effects_cuda_workspace_doubles(std::int64_t n_images, std::int64_t n_inputs,
                                                 std::int64_t n_outputs, std::int64_t groups) {
  return path_effects_cuda_workspace(n_images, n_inputs, n_outputs, groups);
}
#endif

}  // namespace

void bind_path_effects(py::module_& module) {
  module.def("path_effects", &path_effects_cpu, py::arg("x"), py::arg("weight"), py::arg("pre"),
             py::arg("grad").none(true), py::arg("edge"), py::arg("unit"), py::arg("activation"),
             py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
             py::arg("threads"), py::arg("isa") = "");
#if defined(CAUSALPRUNE_WITH_CUDA)
  module.def("path_effects_cuda", &path_effects_on_cuda, py::arg("x"), py::arg("weight"),
             py::arg("pre"), py::arg("grad").none(true), py::arg("edge"), py::arg("unit"),
             py::arg("workspace"), py::arg("activation"), py::arg("stride"), py::arg("padding"),
             py::arg("dilation"), py::arg("groups"));
  module.def("path_effects_cuda_workspace", &path_effects_cuda_workspace_doubles,
             py::arg("n_images"), py::arg("n_inputs"), py::arg("n_outputs"), py::arg("groups"));
#endif
}

}  // namespace causalprune
