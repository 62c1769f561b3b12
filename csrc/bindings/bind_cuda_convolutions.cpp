// The CUDA convolutions; compiled in builds with CUDA kernels alone.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "common/error.hpp"
#include "cuda/channel_conv2d.cuh"
#include "cuda/sparse_conv2d.cuh"

namespace py = pybind11;

namespace causalprune {

namespace {

using Pair = std::array<std::int64_t, 2>;

struct Geometry {
  Pair kernel, stride, padding, dilation;
  std::int64_t groups;
  std::string activation;
};

// What both operators are given beside their weight.
struct Images {
  BorrowedTensor x, out;
  std::optional<BorrowedTensor> residual, bias;

  Images(py::handle x_, py::handle out_, py::handle residual_, py::handle bias_)
      : x(x_, "x", "float32", 4, kDlCuda), out(out_, "out", "float32", 4, kDlCuda) {
    out.expect_same_device(x);
    out.expect_contiguous();
    out.expect_shape({x.size(0), out.size(1), out.size(2), out.size(3)}, "[N, O, Ho, Wo]");
    if (!residual_.is_none()) {
      residual.emplace(residual_, "residual", "float32", 4, kDlCuda);
      residual->expect_same_device(x);
      residual->expect_contiguous();
      residual->expect_shape(out.shape(), "that of out");
    }
    if (!bias_.is_none()) {
      bias.emplace(bias_, "bias", "float32", 1, kDlCuda);
      bias->expect_same_device(x);
      bias->expect_contiguous();
    }
  }

  // A contiguous tensor on the device of x.
  BorrowedTensor beside(py::handle tensor, const char* name, const char* dtype, int ndim) const {
    BorrowedTensor borrowed(tensor, name, dtype, ndim, kDlCuda);
    borrowed.expect_same_device(x);
    borrowed.expect_contiguous();
    return borrowed;
  }

  ConvolutionProblem problem(const Geometry& geometry, std::int64_t n_rows) const {
    ConvolutionProblem p{};
    p.n_images = x.size(0), p.n_inputs = x.size(1);
    p.height = x.size(2), p.width = x.size(3);
    p.n_outputs = out.size(1), p.out_height = out.size(2), p.out_width = out.size(3);
    std::tie(p.kernel_height, p.kernel_width) = std::tuple_cat(geometry.kernel);
    std::tie(p.stride_height, p.stride_width) = std::tuple_cat(geometry.stride);
    std::tie(p.padding_height, p.padding_width) = std::tuple_cat(geometry.padding);
    std::tie(p.dilation_height, p.dilation_width) = std::tuple_cat(geometry.dilation);
    p.groups = geometry.groups;
    p.activation = convolution_activation_by_name(geometry.activation.c_str());
    p.x = x.floats();
    for (int k = 0; k < 4; ++k) p.x_stride[k] = x.stride(k);
    if (bias) {
      bias->expect_shape({n_rows}, "one for each row of weight");
      p.bias = bias->floats();
    }
    p.residual = residual ? residual->floats() : nullptr;
    p.out = out.mutable_floats();
    return p;
  }
};

void sparse_on_cuda(py::handle x, py::handle channel, py::handle row_start, py::handle entries,
                    py::handle out, py::handle residual, py::handle bias, Pair kernel, Pair stride,
                    Pair padding, Pair dilation, std::int64_t groups,
                    const std::string& activation) {
  const Images images(x, out, residual, bias);
  const std::int64_t n_outputs = images.out.size(1);
  const BorrowedTensor channels = images.beside(channel, "channel", "int64", 1);
  const BorrowedTensor starts = images.beside(row_start, "row_start", "int64", 1);
  const BorrowedTensor pairs = images.beside(entries, "entries", "int32", 2);
  channels.expect_shape({n_outputs}, "[O]");
  starts.expect_shape({n_outputs + 1}, "[O + 1]");
  pairs.expect_shape({pairs.size(0), 2}, "[nonzeros, 2]");
  const ConvolutionProblem problem =
      images.problem({kernel, stride, padding, dilation, groups, activation}, n_outputs);
  const SparseWeight weight{channels.int64s(), starts.int64s(), pairs.int32s(), pairs.size(0)};
  const std::int32_t device = images.x.device_id();
  void* stream = current_stream(x, device);
  py::gil_scoped_release release;
  sparse_conv2d_cuda(problem, weight, device, stream);
}

void channel_on_cuda(py::handle x, py::handle weight, py::handle inputs, py::handle outputs,
                     py::handle others, py::handle out, py::handle residual, py::handle bias,
                     Pair stride, Pair padding, Pair dilation, std::int64_t groups,
                     const std::string& activation) {
  const Images images(x, out, residual, bias);
  if (groups < 1) fail("groups: expected at least 1, got ", groups);
  const BorrowedTensor packed = images.beside(weight, "weight", "float32", 5);
  const BorrowedTensor reads = images.beside(inputs, "inputs", "int64", 1);
  const BorrowedTensor writes = images.beside(outputs, "outputs", "int64", 1);
  const BorrowedTensor rest = images.beside(others, "others", "int64", 1);
  const std::int64_t n_rows = writes.size(0), n_columns = reads.size(0);
  packed.expect_shape({groups, packed.size(1), packed.size(2), n_columns / groups, n_rows / groups},
                      "[groups, kh, kw, inputs / groups, outputs / groups]");
  const ConvolutionProblem problem = images.problem(
      {{packed.size(1), packed.size(2)}, stride, padding, dilation, groups, activation}, n_rows);
  const ChannelWeight listed{n_rows,          n_columns,     rest.size(0),   reads.int64s(),
                             writes.int64s(), rest.int64s(), packed.floats()};
  const std::int32_t device = images.x.device_id();
  void* stream = current_stream(x, device);
  py::gil_scoped_release release;
  channel_conv2d_cuda(problem, listed, device, stream);
}

}  // namespace

void bind_cuda_convolutions(py::module_& module) {
  module.def("sparse_conv2d_cuda", &sparse_on_cuda, py::arg("x"), py::arg("channel"),
             py::arg("row_start"), py::arg("entries"), py::arg("out"),
             py::arg("residual").none(true), py::arg("bias").none(true), py::arg("kernel"),
             py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
             py::arg("activation"));
  module.def("channel_conv2d_cuda", &channel_on_cuda, py::arg("x"), py::arg("weight"),
             py::arg("inputs"), py::arg("outputs"), py::arg("others"), py::arg("out"),
             py::arg("residual").none(true), py::arg("bias").none(true), py::arg("stride"),
             py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("activation"));
}

}  // namespace causalprune
