#include <pybind11/stl.h>

#include "bindings/registry.hpp"
#include "curvature/dense_matrix.hpp"

namespace natgrad {

namespace {

constexpr std::array<std::string_view, 2> method_names = {"cholesky", "eigh"};

// norm, residual, quadratic and whether x was out of range, for every vector.
std::vector<std::tuple<double, double, double, bool>> to_tuples(
    const std::vector<DenseSolution>& solutions) {
  std::vector<std::tuple<double, double, double, bool>> tuples;
  for (const DenseSolution& s : solutions)
    tuples.emplace_back(s.norm, s.residual, s.quadratic, s.out_of_range);
  return tuples;
}

}  // namespace

template <class T>
void register_dense_matrix(py::module_& m) {
  using Dense = DenseMatrix<T>;
  m.def("dense_flops",
        &Dense::estimate_flops,
        py::arg("net"),
        py::kw_only(),
        py::arg("num_columns"),
        py::arg("num_cases"),
        "Flops in float64 that form a DenseMatrix of a curvature matrix.");
  py::class_<Dense, LinearOperator<T>, std::shared_ptr<Dense>>(
      m, "DenseMatrix", "A symmetric matrix (P, P) in float64, and what solves with it.")
      .def_static(
          "of_curvature",
          [](CurvatureOperator<T>& curvature) {
            py::gil_scoped_release release;
            return std::make_shared<Dense>(curvature);
          },
          py::arg("curvature"),
          "Formed in blocks of cases, its shift included.")
      .def_static(
          "of_array",
          [](const py::array& a, int num_threads) {
            const Index size = a.shape(0);
            const T* data = in_shape<T>(a, "A", {size, size});
            check_threads(num_threads);
            py::gil_scoped_release release;
            return std::make_shared<Dense>(data, size, num_threads);
          },
          py::arg("a"),
          py::kw_only(),
          py::arg("num_threads"),
          "From what is at and below the diagonal.")
      .def(
          "scaled",
          [](const Dense& dense, const py::array& scales) {
            const double* data = in_shape<double>(scales, "scales", {dense.size()});
            py::gil_scoped_release release;
            return std::make_shared<Dense>(dense, data);
          },
          py::arg("scales"),
          "S A S for the diagonal S (P,).")
      .def(
          "diagonal",
          [](const Dense& dense) {
            auto diagonal = out<double>({dense.size()});
            dense.copy_diagonal(diagonal.mutable_data());
            return diagonal;
          },
          "Diagonal (P,) of A, in float64.")
      .def_property_readonly("is_finite", &Dense::is_finite)
      .def(
          "to_dense",
          [](const Dense& dense) {
            auto a = out<T>({dense.size(), dense.size()});
            T* data = a.mutable_data();
            py::gil_scoped_release release;
            dense.copy(data);
            return a;
          },
          "A (P, P).")
      .def("eigenvalues",
           &Dense::eigenvalues,
           py::call_guard<py::gil_scoped_release>(),
           "Ascending.")
      .def(
          "solve",
          [](Dense& dense, double shift, const std::string& method, const py::array& b) {
            const Index count = b.ndim() == 2 ? b.shape(0) : 0;
            const T* b_data = in_shape<T>(b, "b", {count, dense.size()});
            const auto chosen = enum_from_name<DenseMethod>(method_names, method, "method");
            auto x = out<T>({count, dense.size()});
            T* x_data = x.mutable_data();
            std::vector<DenseSolution> solutions(static_cast<std::size_t>(count));
            typename Dense::Decomposition made;
            {
              py::gil_scoped_release release;
              made = dense.solve(shift, chosen, b_data, count, x_data, solutions.data());
            }
            const std::string_view used = method_names[static_cast<std::size_t>(made.method)];
            return py::make_tuple(x,
                                  to_tuples(solutions),
                                  py::str(used.data(), used.size()),
                                  static_cast<int>(made.definiteness),
                                  made.new_factorizations,
                                  made.new_eigenbases);
          },
          py::arg("shift"),
          py::arg("method"),
          py::arg("b"),
          "(A + shift I)^-1 b for the rows of b (K, P); |b|, |residual|, quadratic and whether x "
          "was "
          "out of range of each; the method; 0 definite, 1 singular, 2 indefinite; what is new.");
}

template void register_dense_matrix<float>(py::module_&);
template void register_dense_matrix<double>(py::module_&);

}  // namespace natgrad
