#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bind.hpp"
#include "bindings/dlpack.hpp"
#include "kernels/contingencies.hpp"

namespace py = pybind11;

namespace causalprune {

namespace {

void count_contingencies_cpu(py::handle sets, py::handle flipped, py::handle counts,
                             py::handle first, int threads, const std::string& isa) {
  const BorrowedTensor rows(sets, "sets", "bool", 2), flips(flipped, "flipped", "bool", 2);
  const BorrowedTensor to(counts, "counts", "int64", 3), smallest(first, "first", "int64", 2);
  flips.expect_shape({rows.size(0), flips.size(1)}, "[M, N] for the rows of sets");
  to.expect_shape({flips.size(1), rows.size(1), to.size(2)}, "[N, U, max_size]");
  smallest.expect_shape({flips.size(1), rows.size(1)}, "[N, U]");
  for (const BorrowedTensor* tensor : {&rows, &flips, &to, &smallest}) tensor->expect_contiguous();
  const ContingenciesProblem problem{
      rows.size(0), rows.size(1),  flips.size(1),       to.size(2),
      rows.bools(), flips.bools(), to.mutable_int64s(), smallest.mutable_int64s()};
  const Isa variant = isa_by_name(isa);
  py::gil_scoped_release release;
  count_contingencies(problem, variant, threads);
}

}  // namespace

void bind_contingencies(py::module_& module) {
  module.def("count_contingencies", &count_contingencies_cpu, py::arg("sets"), py::arg("flipped"),
             py::arg("counts"), py::arg("first"), py::arg("threads"), py::arg("isa") = "");
}

}  // namespace causalprune
