#include <pybind11/stl.h>

#include "bindings/registry.hpp"
#include "curvature/sample_space.hpp"

namespace natgrad {

template <class T>
void register_sample_space(py::module_& m) {
  using Space = SampleSpace<T>;
  py::class_<Space, LinearOperator<T>, std::shared_ptr<Space>>(
      m, "SampleSpace", "The kernel K = U'U (n, n) of a curvature matrix B = U U' (P, P).")
      .def(py::init([](std::shared_ptr<CurvatureOperator<T>> curvature, double bias_scale) {
             return std::make_shared<Space>(std::move(curvature), bias_scale);
           }),
           py::arg("curvature"),
           py::kw_only(),
           py::arg("bias_scale") = 1.0)
      .def("prepare_products",
           &Space::prepare_products,
           py::call_guard<py::gil_scoped_release>(),
           "Layer Grams, for products with K.")
      .def(
          "multiply_factor",
          [](Space& space, const py::array& w, Index num_params) {
            const T* w_data = in_shape<T>(w, "w", {space.size()});
            auto v = out<T>({num_params});
            T* v_data = v.mutable_data();
            py::gil_scoped_release release;
            space.multiply_factor(w_data, v_data);
            return v;
          },
          py::arg("w"),
          py::kw_only(),
          py::arg("num_params"),
          "U w (P,).")
      .def(
          "add_factor",
          [](Space& space, const py::array& w, py::array& v) {
            const T* w_data = in_shape<T>(w, "w", {space.size()});
            in<T>(v, "v", 1);
            T* v_data = static_cast<T*>(v.mutable_data());
            py::gil_scoped_release release;
            space.multiply_factor(w_data, v_data, true);
          },
          py::arg("w"),
          py::arg("v"),
          "v += U w, in place.")
      .def(
          "residual",
          [](Space& space,
             const py::array& g,
             const py::array& x,
             const std::pair<double, double>& shift) {
            const T* g_data = in<T>(g, "g", 1);
            const T* x_data = in_shape<T>(x, "x", {g.shape(0)});
            auto r = out<T>({g.shape(0)});
            T* r_data = r.mutable_data();
            std::array<double, 2> numbers{};
            {
              py::gil_scoped_release release;
              numbers = space.residual(g_data, x_data, {shift.first, shift.second}, r_data);
            }
            return py::make_tuple(r, numbers[0], numbers[1]);
          },
          py::arg("g"),
          py::arg("x"),
          py::kw_only(),
          py::arg("shift"),
          "g - A x for A = U U' + S, its norm, and x'A x / 2 - g'x.")
      .def(
          "multiply_factor_transposed",
          [](Space& space, const py::array& v) {
            const T* v_data = in<T>(v, "v", 1);
            auto w = out<T>({space.size()});
            T* w_data = w.mutable_data();
            py::gil_scoped_release release;
            space.multiply_factor_transposed(v_data, w_data);
            return w;
          },
          py::arg("v"),
          "U'v (n,).")
      .def(
          "split_gradient",
          [](Space& space, const py::array& targets, Index num_outputs) {
            const T* y_data = in<T>(targets, "y", 2);
            const Index num_cases = targets.shape(0), rows = targets.shape(1);
            auto r = out<T>({space.size()}), rest = out<T>({num_cases, num_outputs});
            T *r_data = r.mutable_data(), *rest_data = rest.mutable_data();
            bool complete = false;
            {
              py::gil_scoped_release release;
              Panels<T> y(rows, num_cases);
              pack_cases(y_data, num_cases, rows, 0, y.count(), Fill::last_case, y.view());
              complete = space.split_gradient(y, r_data, rest_data);
            }
            return py::make_tuple(r, rest, complete);
          },
          py::arg("targets"),
          py::kw_only(),
          py::arg("num_outputs"),
          "r (n,), rest (N, C) with gradient U r + J'rest, and whether the rest is 0.")
      .def("form",
           &Space::form,
           py::call_guard<py::gil_scoped_release>(),
           "Forms K; whether it had to.")
      .def_property_readonly("largest_diagonal", &Space::largest_diagonal, "Of K.")
      .def(
          "kernel",
          [](Space& space) {
            auto k = out<double>({space.size(), space.size()});
            double* k_data = k.mutable_data();
            py::gil_scoped_release release;
            space.copy_kernel(k_data);
            return k;
          },
          "K (n, n) in float64, in the order (case, column).")
      .def_property_readonly(
          "factor_shift", &Space::factor_shift, "The shift of the factors that are kept, or None.")
      .def("factorize",
           &Space::factorize,
           py::arg("shift"),
           py::call_guard<py::gil_scoped_release>(),
           "Cholesky factors of K + shift I; whether it is positive definite to rounding.")
      .def(
          "solve",
          [](Space& space, double shift, const py::array& b) -> py::object {
            const T* b_data = in_shape<T>(b, "b", {space.size()});
            auto x = out<T>({space.size()});
            T* x_data = x.mutable_data();
            bool is_definite = false;
            {
              py::gil_scoped_release release;
              is_definite = space.solve(shift, b_data, x_data);
            }
            return is_definite ? py::object(x) : py::none();
          },
          py::arg("shift"),
          py::arg("b"),
          "(K + shift I)^-1 b by Cholesky factors; None if it is not positive definite.")
      .def("decompose",
           &Space::decompose,
           py::call_guard<py::gil_scoped_release>(),
           "Eigenvectors of K; whether they had to be computed.")
      .def(
          "solve_decomposed",
          [](Space& space, double shift, const py::array& b) {
            const T* b_data = in_shape<T>(b, "b", {space.size()});
            auto x = out<T>({space.size()});
            T* x_data = x.mutable_data();
            py::gil_scoped_release release;
            space.solve_decomposed(shift, b_data, x_data);
            return x;
          },
          py::arg("shift"),
          py::arg("b"),
          "(K + shift I)^-1 b by the eigenvectors of K.");
}

template void register_sample_space<float>(py::module_&);
template void register_sample_space<double>(py::module_&);

}  // namespace natgrad
