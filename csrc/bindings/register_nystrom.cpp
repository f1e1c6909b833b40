#include "bindings/registry.hpp"
#include "krylov/nystrom.hpp"

namespace natgrad {
namespace {

py::array_t<double> to_array(const std::vector<double>& values) {
  auto result = out<double>({static_cast<Index>(values.size())});
  std::copy(values.begin(), values.end(), result.mutable_data());
  return result;
}

}  // namespace

template <class T>
void register_nystrom(py::module_& m) {
  using Op = NystromOperator<T>;
  m.def(
      "orthonormalise_rows",
      [](py::array& q, int num_threads) {
        check_array<T>(q, "q", 2);
        T* data = static_cast<T*>(q.mutable_data());
        const Index rank = q.shape(0), size = q.shape(1);
        py::gil_scoped_release release;
        orthonormalise_rows<T>(rank, size, check_threads(num_threads), data);
      },
      py::arg("q"),
      py::kw_only(),
      py::arg("num_threads"),
      "Orthonormalises the rows of q (l, P) in place; dependent ones become zero.");
  py::class_<Op, LinearOperator<T>, std::shared_ptr<Op>>(
      m, "Nystrom", "The inverse of a damped low-rank approximation.")
      .def(py::init([](Index size, int num_threads) {
             return std::make_shared<Op>(size, check_threads(num_threads));
           }),
           py::arg("size"),
           py::kw_only(),
           py::arg("num_threads"))
      .def_property_readonly("eigenvalues", [](const Op& op) { return to_array(op.eigenvalues()); })
      .def_property_readonly("vectors",
                             [](const Op& op) {
                               Buffer<T> u = op.vectors();
                               const Index rank = u.size() / op.size();
                               return adopt(std::move(u), {rank, op.size()});
                             })
      .def(
          "update",
          [](Op& op, const py::array& omega, const py::array& y) {
            const Index rank = omega.ndim() == 2 ? omega.shape(0) : 0;
            const T* omega_data = in_shape<T>(omega, "omega", {rank, op.size()});
            const T* y_data = in_shape<T>(y, "y", {rank, op.size()});
            py::gil_scoped_release release;
            op.update(rank, omega_data, y_data);
          },
          py::arg("omega"),
          py::kw_only(),
          py::arg("y"),
          "New approximation from omega (l, P), of orthonormal rows, and y = omega A (l, P).")
      .def(
          "set_approximation",
          [](Op& op, const py::array& eigenvalues, const py::array& vectors) {
            const Index rank = eigenvalues.ndim() == 1 ? eigenvalues.shape(0) : 0;
            const double* values = in_shape<double>(eigenvalues, "eigenvalues", {rank});
            const T* u = in_shape<T>(vectors, "vectors", {rank, op.size()});
            py::gil_scoped_release release;
            op.set_approximation(rank, values, u);
          },
          py::arg("eigenvalues"),
          py::kw_only(),
          py::arg("vectors"),
          "The approximation of eigenvalues (l,) and eigenvectors (l, P).")
      .def("refresh",
           &Op::refresh,
           py::arg("damping"),
           py::call_guard<py::gil_scoped_release>(),
           "Sets the damping of the inverse.")
      .def("log_determinant",
           &Op::log_determinant,
           py::arg("damping"),
           py::call_guard<py::gil_scoped_release>(),
           "log det of what the operator inverts, with this damping.")
      .def_property_readonly(
          "inverse",
          [](const Op& op) {
            const auto inverse = op.inverse();
            return py::make_tuple(to_array(inverse.coefficients), inverse.scale);
          },
          "C (l,) and s of the operator s (I + U C U').")
      .def(
          "apply_root",
          [](Op& op, const py::array& v) {
            const T* v_data = in_shape<T>(v, "v", {v.shape(0), op.size()});
            auto y = out<T>({v.shape(0), op.size()});
            T* y_data = y.mutable_data();
            const Index num_vectors = v.shape(0);
            py::gil_scoped_release release;
            op.apply_root(v_data, num_vectors, y_data);
            return y;
          },
          py::arg("v"),
          "The square root of the operator times the rows of v (K, P).");
}

template void register_nystrom<float>(py::module_&);
template void register_nystrom<double>(py::module_&);

}  // namespace natgrad
