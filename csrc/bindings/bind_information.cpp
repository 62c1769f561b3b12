#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "common/error.hpp"
#include "kernels/histogram_information.hpp"
#include "kernels/spanning_tree.hpp"

#if defined(CAUSALPRUNE_WITH_CUDA)
#include "cuda/histogram_information.cuh"
#endif

namespace py = pybind11;

namespace causalprune {

namespace {

HistogramInformationProblem histogram_problem(const BorrowedTensor& x, const BorrowedTensor& y,
                                              const BorrowedTensor& information, int bins) {
  y.expect_shape({x.size(0), y.size(1)}, "[N, O] for the samples of x");
  information.expect_shape({y.size(1), x.size(1)}, "[O, I]");
  information.expect_contiguous();
  return {x.size(0),
          x.size(1),
          y.size(1),
          bins,
          x.floats(),
          {x.stride(0), x.stride(1)},
          y.floats(),
          {y.stride(0), y.stride(1)},
          information.doubles()};
}

void histogram_information_cpu(py::handle x, py::handle y, py::handle information, int bins,
                               int threads) {
  const BorrowedTensor xs(x, "x", "float32", 2), ys(y, "y", "float32", 2);
  const BorrowedTensor to(information, "information", "float64", 2);
  const HistogramInformationProblem problem = histogram_problem(xs, ys, to, bins);
  py::gil_scoped_release release;
  histogram_information(problem, threads);
}

#if defined(CAUSALPRUNE_WITH_CUDA)
void histogram_information_on_cuda(py::handle x, py::handle y, py::handle information,
                                   py::handle workspace, int bins) {
  const BorrowedTensor xs(x, "x", "float32", 2, kDlCuda), ys(y, "y", "float32", 2, kDlCuda);
  const BorrowedTensor to(information, "information", "float64", 2, kDlCuda);
  const BorrowedTensor scratch(workspace, "workspace", "float64", 1, kDlCuda);
  for (const BorrowedTensor* each : {&ys, &to, &scratch}) each->expect_same_device(xs);
  scratch.expect_contiguous();
  const HistogramInformationProblem problem = histogram_problem(xs, ys, to, bins);
  const std::int32_t device = xs.device_id();
  void* stream = current_stream(x, device);
  py::gil_scoped_release release;
  histogram_information_cuda(problem, scratch.doubles(), scratch.size(0), device, stream);
}

std::int64_t histogram_information_cuda_workspace_doubles(std::int64_t n_samples, std::int64_t n_x,
                                                          std::int64_t n_y, int bins) {
  return histogram_information_cuda_workspace(
      {n_samples, n_x, n_y, bins, nullptr, {}, nullptr, {}, nullptr});
}
#endif

void spanning_tree_crossings_cpu(py::handle children, py::handle parents, py::handle crossings,
                                 std::int64_t child_block, std::int64_t parent_block, int threads,
                                 const std::string& isa) {
  const BorrowedTensor below(children, "children", "float32", 2);
  const BorrowedTensor above(parents, "parents", "float32", 2);
  const BorrowedTensor to(crossings, "crossings", "float64", 2);
  above.expect_shape({below.size(0), above.size(1)}, "[N, P] for the samples of children");
  if (child_block < 1) fail("child_block: expected at least 1, got ", child_block);
  if (parent_block < 1) fail("parent_block: expected at least 1, got ", parent_block);
  const auto blocks = [](std::int64_t n, std::int64_t block) {
    return n / block + (n % block != 0);
  };
  to.expect_shape({blocks(below.size(1), child_block), blocks(above.size(1), parent_block)},
                  "[child blocks, parent blocks]");
  to.expect_contiguous();
  const SpanningTreeProblem problem{below.size(0),
                                    below.size(1),
                                    above.size(1),
                                    child_block,
                                    parent_block,
                                    below.floats(),
                                    {below.stride(0), below.stride(1)},
                                    above.floats(),
                                    {above.stride(0), above.stride(1)},
                                    to.doubles()};
  const Isa variant = isa_by_name(isa);
  py::gil_scoped_release release;
  spanning_tree_crossings(problem, variant, threads);
}

}  // namespace

void bind_information(py::module_& module) {
  module.def("histogram_information", &histogram_information_cpu, py::arg("x"), py::arg("y"),
             py::arg("information"), py::arg("bins"), py::arg("threads"));
#if defined(CAUSALPRUNE_WITH_CUDA)
  module.def("histogram_information_cuda", &histogram_information_on_cuda, py::arg("x"),
             py::arg("y"), py::arg("information"), py::arg("workspace"), py::arg("bins"));
  module.def("histogram_information_cuda_workspace", &histogram_information_cuda_workspace_doubles,
             py::arg("n_samples"), py::arg("n_x"), py::arg("n_y"), py::arg("bins"));
#endif
  module.def("spanning_tree_crossings", &spanning_tree_crossings_cpu, py::arg("children"),
             py::arg("parents"), py::arg("crossings"), py::arg("child_block"),
             py::arg("parent_block"), py::arg("threads"), py::arg("isa") = "");
}

}  // namespace causalprune
