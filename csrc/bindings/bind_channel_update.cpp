#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "kernels/channel_update.hpp"

#if defined(CAUSALPRUNE_WITH_CUDA)
#include "cuda/channel_update.cuh"
#endif

namespace py = pybind11;

namespace causalprune {

namespace {

using Pair = std::array<std::int64_t, 2>;

struct Borrowed {
  BorrowedTensor plain, difference, weight, out;

  Borrowed(py::handle plain_, py::handle difference_, py::handle weight_, py::handle out_,
           std::int32_t device)
      : plain(plain_, "plain", "float32", 4, device),
        difference(difference_, "difference", "float32", 4, device),
        weight(weight_, "weight", "float32", 4, device),
        out(out_, "out", "float32", 4, device) {}

  ChannelUpdateProblem problem(Pair stride, Pair padding, Pair dilation, bool relu) const {
    ChannelUpdateProblem p{};
    p.n_rows = difference.size(0);
    p.n_changed = difference.size(1);
    p.height = difference.size(2);
    p.width = difference.size(3);
    p.n_outputs = weight.size(0);
    p.kernel_height = weight.size(2);
    p.kernel_width = weight.size(3);
    p.out_height = plain.size(2);
    p.out_width = plain.size(3);
    weight.expect_shape({p.n_outputs, p.n_changed, p.kernel_height, p.kernel_width},
                        "[O, C, kh, kw] for the channels of difference");
    plain.expect_shape({p.n_rows, p.n_outputs, p.out_height, p.out_width},
                       "[R, O, Ho, Wo] for the rows of difference and the outputs of weight");
    out.expect_shape(plain.shape(), "that of plain");
    std::tie(p.stride_height, p.stride_width) = std::tuple_cat(stride);
    std::tie(p.padding_height, p.padding_width) = std::tuple_cat(padding);
    std::tie(p.dilation_height, p.dilation_width) = std::tuple_cat(dilation);
    p.relu = relu;
    p.plain = plain.floats();
    p.difference = difference.floats();
    p.weight = weight.floats();
    p.out = out.mutable_floats();
    for (int k = 0; k < 4; ++k) {
      p.plain_stride[k] = plain.stride(k);
      p.difference_stride[k] = difference.stride(k);
      p.weight_stride[k] = weight.stride(k);
      p.out_stride[k] = out.stride(k);
    }
    // A dimension of size one may have any stride; one channel is innermost by itself.
    if (p.n_outputs == 1) p.plain_stride[1] = p.out_stride[1] = 1;
    return p;
  }
};

void channel_update_cpu(py::handle plain, py::handle difference, py::handle weight, py::handle out,
                        Pair stride, Pair padding, Pair dilation, bool relu, int threads,
                        const std::string& isa) {
  const Borrowed borrowed(plain, difference, weight, out, kDlCpu);
  const ChannelUpdateProblem problem = borrowed.problem(stride, padding, dilation, relu);
  const Isa variant = isa_by_name(isa);
  py::gil_scoped_release release;
  channel_update(problem, variant, threads);
}

#if defined(CAUSALPRUNE_WITH_CUDA)
void channel_update_on_cuda(py::handle plain, py::handle difference, py::handle weight,
                            py::handle out, Pair stride, Pair padding, Pair dilation, bool relu) {
  const Borrowed borrowed(plain, difference, weight, out, kDlCuda);
  for (const BorrowedTensor* each : {&borrowed.difference, &borrowed.weight, &borrowed.out}) {
    each->expect_same_device(borrowed.plain);
  }
  const ChannelUpdateProblem problem = borrowed.problem(stride, padding, dilation, relu);
  const std::int32_t device = borrowed.plain.device_id();
  void* stream = current_stream(plain, device);
  py::gil_scoped_release release;
  channel_update_cuda(problem, device, stream);
}
#endif

}  // namespace

void bind_channel_update(py::module_& module) {
  module.def("channel_update", &channel_update_cpu, py::arg("plain"), py::arg("difference"),
             py::arg("weight"), py::arg("out"), py::arg("stride"), py::arg("padding"),
             py::arg("dilation"), py::arg("relu"), py::arg("threads"), py::arg("isa") = "");
#if defined(CAUSALPRUNE_WITH_CUDA)
  module.def("channel_update_cuda", &channel_update_on_cuda, py::arg("plain"),
             py::arg("difference"), py::arg("weight"), py::arg("out"), py::arg("stride"),
             py::arg("padding"), py::arg("dilation"), py::arg("relu"));
#endif
}

}  // namespace causalprune
