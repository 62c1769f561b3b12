#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <tuple>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "common/error.hpp"
#include "kernels/packed_program.hpp"

namespace py = pybind11;

namespace causalprune {

namespace {

using Pair = std::array<std::int64_t, 2>;
using Triple = std::array<std::int64_t, 3>;
using Quadruple = std::array<std::int64_t, 4>;

PackedLayout layout_of(Quadruple shape, Triple lanes, Pair strip, Quadruple halo) {
  const PackedLayout layout{shape[0], shape[1], shape[2], shape[3], lanes[0], lanes[1], lanes[2],
                            strip[0], strip[1], halo[0],  halo[1],  halo[2],  halo[3]};
  check_layout(layout, "layout");
  return layout;
}

std::shared_ptr<PackedConvolution> convolution_of(
    py::handle weight_, py::handle bias_, const PackedLayout& in, const PackedLayout& out,
    const std::vector<std::int32_t>& inputs, const std::vector<std::int32_t>& outputs, Pair stride,
    Pair padding, Pair dilation, std::int64_t groups, const std::string& activation,
    std::array<std::int64_t, 4> blocking, int threads, const std::string& isa) {
  const BorrowedTensor weight(weight_, "weight", "float32", 4);
  weight.expect_contiguous();
  if (groups < 1) fail("groups: expected at least 1, got ", groups);
  const auto n_inputs = static_cast<std::int64_t>(inputs.size());
  const auto n_outputs = static_cast<std::int64_t>(outputs.size());
  weight.expect_shape({n_outputs, n_inputs / groups, weight.size(2), weight.size(3)},
                      "[outputs, inputs / groups, kh, kw]");
  PackedConvolutionProblem p{};
  p.in = in, p.out = out;
  p.kernel_height = weight.size(2), p.kernel_width = weight.size(3);
  std::tie(p.stride_height, p.stride_width) = std::tuple_cat(stride);
  std::tie(p.padding_height, p.padding_width) = std::tuple_cat(padding);
  std::tie(p.dilation_height, p.dilation_width) = std::tuple_cat(dilation);
  p.groups = groups;
  p.activation = packed_activation_by_name(activation.c_str());
  p.inputs = inputs, p.outputs = outputs;
  p.weight = weight.floats();
  std::unique_ptr<const BorrowedTensor> bias;
  if (!bias_.is_none()) {
    bias = std::make_unique<const BorrowedTensor>(bias_, "bias", "float32", 1);
    bias->expect_contiguous();
    bias->expect_shape({n_outputs}, "[outputs]");
    p.bias = bias->floats();
  }
  const PackedBlocking how{static_cast<int>(blocking[0]), static_cast<int>(blocking[1]),
                           static_cast<int>(blocking[2]), blocking[3]};
  const Isa variant = isa_by_name(isa);
  py::gil_scoped_release release;
  return std::make_shared<PackedConvolution>(p, how, variant, threads);
}

void pool_step(PackedProgram& program, const std::string& kind, int from, int to, Pair kernel,
               Pair stride, Pair padding, bool count_padding) {
  if (kind != "max" && kind != "average") {
    fail("kind: expected 'max' or 'average', got '", kind, "'");
  }
  PoolProblem p{};
  std::tie(p.kernel_height, p.kernel_width) = std::tuple_cat(kernel);
  std::tie(p.stride_height, p.stride_width) = std::tuple_cat(stride);
  std::tie(p.padding_height, p.padding_width) = std::tuple_cat(padding);
  p.average = kind == "average";
  p.count_padding = count_padding;
  program.pool(p, from, to);
}

std::vector<float> floats_of(py::handle tensor, const char* name) {
  if (tensor.is_none()) return {};
  const BorrowedTensor borrowed(tensor, name, "float32", 1);
  borrowed.expect_contiguous();
  return {borrowed.floats(), borrowed.floats() + borrowed.size(0)};
}

PlainView plain_view(const BorrowedTensor& tensor) {
  PlainView view{tensor.mutable_floats(), {}, {}};
  for (int k = 0; k < 4; ++k) {
    view.size[k] = tensor.size(k);
    view.stride[k] = tensor.stride(k);
  }
  return view;
}

bool run_program(const PackedProgram& program, const std::vector<py::object>& inputs_,
                 const std::vector<py::object>& outputs_, py::handle workspace_,
                 bool stop_at_nonfinite, int threads) {
  std::vector<std::unique_ptr<const BorrowedTensor>> borrowed;
  std::vector<PlainView> inputs, outputs;
  for (const py::object& tensor : inputs_) {
    borrowed.push_back(std::make_unique<const BorrowedTensor>(tensor, "inputs", "float32", 4));
    inputs.push_back(plain_view(*borrowed.back()));
  }
  for (const py::object& tensor : outputs_) {
    borrowed.push_back(std::make_unique<const BorrowedTensor>(tensor, "outputs", "float32", 4));
    outputs.push_back(plain_view(*borrowed.back()));
  }
  const BorrowedTensor workspace(workspace_, "workspace", "float32", 1);
  workspace.expect_contiguous();
  py::gil_scoped_release release;
  return program.run(inputs, outputs, workspace.mutable_floats(), workspace.size(0),
                     stop_at_nonfinite, threads);
}

}  // namespace

void bind_packed(py::module_& module) {
  py::class_<PackedLayout>(module, "PackedLayout")
      .def(py::init(&layout_of), py::arg("shape"), py::arg("lanes"), py::arg("strip"),
           py::arg("halo"))
      .def_property_readonly("floats", &PackedLayout::floats);

  py::class_<PackedConvolution, std::shared_ptr<PackedConvolution>>(module, "PackedConvolution")
      .def(py::init(&convolution_of), py::arg("weight"), py::arg("bias").none(true),
           py::arg("source"), py::arg("target"), py::arg("inputs"), py::arg("outputs"),
           py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
           py::arg("activation"), py::arg("blocking"), py::arg("threads"), py::arg("isa") = "")
      .def_property_readonly("blocking",
                             [](const PackedConvolution& plan) {
                               const PackedBlocking& b = plan.blocking();
                               return py::make_tuple(b.rows_per_group, b.tile_height, b.tile_width,
                                                     b.block_channels);
                             })
      .def_property_readonly("n_taps", &PackedConvolution::n_taps)
      .def_property_readonly("bytes", &PackedConvolution::bytes);

  py::class_<PackedProgram, std::shared_ptr<PackedProgram>>(module, "PackedProgram")
      .def(py::init([](const std::string& isa) {
             return std::make_shared<PackedProgram>(isa_by_name(isa));
           }),
           py::arg("isa") = "")
      .def("buffer", &PackedProgram::buffer, py::arg("layout"))
      .def("slice", &PackedProgram::slice, py::arg("buffer"), py::arg("first_channel"),
           py::arg("n_channels"))
      .def("pack", &PackedProgram::pack, py::arg("argument"), py::arg("target"))
      .def("unpack", &PackedProgram::unpack, py::arg("source"), py::arg("argument"))
      .def("global_average", &PackedProgram::global_average, py::arg("source"), py::arg("argument"))
      .def(
          "convolve",
          [](PackedProgram& program, std::shared_ptr<PackedConvolution> plan, int from, int to,
             int residual) { program.convolve(std::move(plan), from, to, residual); },
          py::arg("plan"), py::arg("source"), py::arg("target"), py::arg("residual") = -1)
      .def("fill_halo", &PackedProgram::fill_halo, py::arg("buffer"), py::arg("outside"))
      .def("pool", &pool_step, py::arg("kind"), py::arg("source"), py::arg("target"),
           py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("count_padding"))
      .def(
          "combine",
          [](PackedProgram& program, int a, int b, int to, py::handle scale, py::handle shift,
             const std::string& activation) {
            program.combine(a, b, to, floats_of(scale, "scale"), floats_of(shift, "shift"),
                            packed_activation_by_name(activation.c_str()));
          },
          py::arg("a"), py::arg("b"), py::arg("target"), py::arg("scale").none(true),
          py::arg("shift").none(true), py::arg("activation"))
      .def("finish", &PackedProgram::finish)
      .def_property_readonly("workspace_floats", &PackedProgram::workspace_floats)
      .def("run", &run_program, py::arg("inputs"), py::arg("outputs"), py::arg("workspace"),
           py::arg("stop_at_nonfinite"), py::arg("threads"));
}

}  // namespace causalprune
