#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "common/error.hpp"
#include "kernels/histogram_information.hpp"
#include "kernels/spanning_tree.hpp"

namespace py = pybind11;

namespace causalprune {

namespace {

void histogram_information_cpu(py::handle x, py::handle y, py::handle information, int bins,
                               int threads) {
  const BorrowedTensor xs(x, "x", "float32", 2), ys(y, "y", "float32", 2);
  const BorrowedTensor to(information, "information", "float64", 2);
  ys.expect_shape({xs.size(0), ys.size(1)}, "[N, O] for the samples of x");
  to.expect_shape({ys.size(1), xs.size(1)}, "[O, I]");
  to.expect_contiguous();
  const HistogramInformationProblem problem{xs.size(0),  xs.size(1),
                                            ys.size(1),  bins,
                                            xs.floats(), {xs.stride(0), xs.stride(1)},
                                            ys.floats(), {ys.stride(0), ys.stride(1)},
                                            to.doubles()};
  py::gil_scoped_release release;
  histogram_information(problem, threads);
}

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
  module.def("spanning_tree_crossings", &spanning_tree_crossings_cpu, py::arg("children"),
             py::arg("parents"), py::arg("crossings"), py::arg("child_block"),
             py::arg("parent_block"), py::arg("threads"), py::arg("isa") = "");
}

}  // namespace causalprune
