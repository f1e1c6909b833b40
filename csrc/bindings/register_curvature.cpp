#include "curvature.hpp"
#include "objective.hpp"
#include "registry.hpp"

namespace natgrad {

template <class T>
void register_objective(py::module_& m) {
  using Obj = Objective<T>;
  py::class_<Obj>(m, "Objective", "Weighted mean of a loss over the targets of one batch, plus l2.")
      .def(py::init([](Loss loss, const py::array& targets, const py::object& weights) {
             const T* data = in<T>(targets, "y", 2);
             const Index num_cases = targets.shape(0), outputs = targets.shape(1);
             Panels<T> panels(outputs, num_cases);
             pack_cases(
                 data, num_cases, outputs, 0, panels.count(), Fill::last_case, panels.view());
             return Obj(loss, std::move(panels), case_weights<T>(num_cases, weights));
           }),
           py::arg("loss"),
           py::kw_only(),
           py::arg("targets"),
           py::arg("weights"))
      .def(
          "value",
          [](const Obj& h,
             const Architecture& net,
             const py::array& theta,
             const py::array& x,
             double l2,
             int num_threads) {
            const T* theta_data = in_shape<T>(theta, "params", {net.num_params});
            const T* x_data = in_shape<T>(x, "X", {h.num_cases(), net.num_inputs()});
            py::gil_scoped_release release;
            return h.value(net, theta_data, x_data, l2, check_threads(num_threads));
          },
          py::arg("net"),
          py::kw_only(),
          py::arg("params"),
          py::arg("x"),
          py::arg("l2"),
          py::arg("num_threads"),
          "h at params (P,) for x (N, d_0).")
      .def(
          "value_and_gradient",
          [](const Obj& h, Linearization<T>& lin, const py::array& theta, double l2) {
            const T* theta_data = in_shape<T>(theta, "params", {lin.net().num_params});
            check(lin.num_cases() == h.num_cases(),
                  "y has ",
                  h.num_cases(),
                  " cases, X has ",
                  lin.num_cases());
            auto g = out<T>({lin.net().num_params});
            T* g_data = g.mutable_data();
            double value = 0;
            {
              py::gil_scoped_release release;
              value = h.value_and_gradient(lin, theta_data, l2, g_data);
            }
            return py::make_tuple(value, g);
          },
          py::arg("linearization"),
          py::kw_only(),
          py::arg("params"),
          py::arg("l2"),
          "h and dh/dparams (P,) at the params of the linearisation.");
}

template <class T>
void register_operator(py::module_& m) {
  using Op = LinearOperator<T>;
  py::class_<Op, std::shared_ptr<Op>>(m, "LinearOperator", "A symmetric linear map on R^P.")
      .def_property_readonly("size", &Op::size)
      .def(
          "apply",
          [](Op& op, const py::array& v) {
            const T* v_data = in_shape<T>(v, "v", {v.shape(0), op.size()});
            auto y = out<T>({v.shape(0), op.size()});
            T* y_data = y.mutable_data();
            const Index num_vectors = v.shape(0);
            py::gil_scoped_release release;
            op.apply_block(v_data, num_vectors, y_data);
            return y;
          },
          py::arg("v"),
          "A v for the rows of v (K, P).");
}

template <class T>
void register_curvature(py::module_& m) {
  using Op = CurvatureOperator<T>;
  py::class_<Op, LinearOperator<T>, std::shared_ptr<Op>>(
      m, "Curvature", "B + shift I, B the exact Fisher or generalized Gauss-Newton matrix.")
      .def(py::init([](std::shared_ptr<Linearization<T>> lin,
                       Loss loss,
                       const py::object& weights,
                       double shift) {
             auto case_w = case_weights<T>(lin->num_cases(), weights);
             return std::make_shared<Op>(std::move(lin), loss, std::move(case_w), shift);
           }),
           py::arg("linearization"),
           py::arg("loss"),
           py::kw_only(),
           py::arg("weights"),
           py::arg("shift"))
      .def_property("shift", &Op::shift, &Op::set_shift)
      .def(
          "quadratic_form",
          [](Op& op, const py::array& v, const py::array& w) {
            const T* v_data = in_shape<T>(v, "v", {op.size()});
            const T* w_data = in_shape<T>(w, "w", {op.size()});
            py::gil_scoped_release release;
            return op.quadratic_form(v_data, w_data);
          },
          py::arg("v"),
          py::arg("w"),
          "v' (B + shift I) w.")
      .def(
          "quadratic_forms",
          [](Op& op, const py::array& v, const py::array& w) {
            const T* v_data = in_shape<T>(v, "v", {op.size()});
            const T* w_data = in_shape<T>(w, "w", {op.size()});
            std::array<double, 3> forms{};
            {
              py::gil_scoped_release release;
              forms = op.quadratic_forms(v_data, w_data);
            }
            return py::make_tuple(forms[0], forms[1], forms[2]);
          },
          py::arg("v"),
          py::arg("w"),
          "v'Av, v'Aw, w'Aw for A = B + shift I.");
}

template void register_objective<float>(py::module_&);
template void register_objective<double>(py::module_&);
template void register_operator<float>(py::module_&);
template void register_operator<double>(py::module_&);
template void register_curvature<float>(py::module_&);
template void register_curvature<double>(py::module_&);

}  // namespace natgrad
