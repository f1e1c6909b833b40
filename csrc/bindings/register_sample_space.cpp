#include <pybind11/stl.h>

#include "bindings/registry.hpp"
#include "curvature/sample_space.hpp"

namespace natgrad {

namespace {

// x = f(b) for vectors of the sample space.
template <class T, class F>
py::array_t<T> map_vector(const py::array& b, Index size, const F& f) {
  const T* b_data = in_shape<T>(b, "b", {size});
  auto x = out<T>({size});
  T* x_data = x.mutable_data();
  py::gil_scoped_release release;
  f(b_data, x_data);
  return x;
}

template <class T>
void register_kernel_inverses(py::module_& m) {
  using Cholesky = KernelCholesky<T>;
  py::class_<Cholesky, std::shared_ptr<Cholesky>>(
      m, "KernelCholesky", "Cholesky factors of K + s I for one shift s.")
      .def_property_readonly("is_definite",
                             &Cholesky::is_definite,
                             "Whether K + s I is positive definite to rounding.")
      .def(
          "solve",
          [](const Cholesky& inverse, const py::array& b) {
            check(inverse.is_definite(), "K + shift I is not positive definite");
            return map_vector<T>(
                b, inverse.size(), [&](const T* in_data, T* x) { inverse.solve(in_data, x); });
          },
          py::arg("b"),
          "(K + s I)^-1 b (n,).");
  using Eigenbasis = KernelEigenbasis<T>;
  py::class_<Eigenbasis, std::shared_ptr<Eigenbasis>>(m, "KernelEigenbasis", "Eigenvectors of K.")
      .def(
          "solve",
          [](const Eigenbasis& inverse, double shift, const py::array& b) {
            return map_vector<T>(b, inverse.size(), [&](const T* in_data, T* x) {
              inverse.solve(shift, in_data, x);
            });
          },
          py::arg("shift"),
          py::arg("b"),
          "(K + shift I)^-1 b (n,).");
}

}  // namespace

template <class T>
void register_sample_space(py::module_& m) {
  register_kernel_inverses<T>(m);
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
      .def("largest_diagonal",
           &Space::largest_diagonal,
           py::call_guard<py::gil_scoped_release>(),
           "Of K.")
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
      .def(
          "factorize",
          [](Space& space, double shift) {
            py::gil_scoped_release release;
            const auto kept = space.factorize(shift);
            return std::make_pair(kept.inverse, kept.is_new);
          },
          py::arg("shift"),
          "Cholesky factors of K + shift I, and whether they had to be computed.")
      .def(
          "decompose",
          [](Space& space) {
            py::gil_scoped_release release;
            const auto kept = space.decompose();
            return std::make_pair(kept.inverse, kept.is_new);
          },
          "Eigenvectors of K, and whether they had to be computed.");
}

template void register_sample_space<float>(py::module_&);
template void register_sample_space<double>(py::module_&);

}  // namespace natgrad
