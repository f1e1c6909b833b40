#include <pybind11/stl.h>

#include "bindings/callables.hpp"
#include "curvature/gauss_newton.hpp"
#include "curvature/hessian.hpp"
#include "curvature/objective.hpp"

namespace natgrad {
namespace {

using Pair = std::pair<double, double>;  // for weights, for biases
Shift shift_of(const Pair& pair) {
  return {pair.first, pair.second};
}
template <class Op>
Pair get_shift(const Op& op) {
  return {op.shift().weights, op.shift().biases};
}
template <class Op>
void set_shift(Op& op, const Pair& pair) {
  op.set_shift(shift_of(pair));
}

// Targets (N x num_targets) in panels, columns past N repeating the last case; empty for None.
template <class T>
Panels<T> pack_targets(const py::object& targets, Index num_cases, Index num_targets) {
  if (targets.is_none()) return {};
  const T* data = in_shape<T>(targets.cast<py::array>(), "y", {num_cases, num_targets});
  Panels<T> panels(num_targets, num_cases);
  pack_cases(data, num_cases, num_targets, 0, panels.count(), Fill::last_case, panels.view());
  return panels;
}

template <class T, class Op>
py::object diagonal_of(Op& op, py::object callback) {
  auto d = out<T>({op.size()});
  T* d_data = d.mutable_data();
  ProgressPoll poll(std::move(callback), op.diagonal_flops());
  const bool is_complete =
      poll.run([&](const Progress& progress) { op.diagonal(d_data, progress); });
  return is_complete ? py::object(d) : py::none();
}

template <class Op>
py::object trace_of(Op& op, py::object callback) {
  double value = 0;
  ProgressPoll poll(std::move(callback), op.diagonal_flops());
  const bool is_complete = poll.run([&](const Progress& progress) { value = op.trace(progress); });
  return is_complete ? py::object(py::float_(value)) : py::none();
}

template <class T>
LinearizationOptions hessian_options(int num_threads, Index chunk_size) {
  return {check_threads(num_threads), chunk_size, true};
}

}  // namespace

template <class T>
void register_objective(py::module_& m) {
  using Obj = Objective<T>;
  py::class_<Obj>(m, "Objective", "Weighted mean of a loss over the targets of one batch, plus l2.")
      .def(py::init([](const Loss& loss,
                       const py::array& targets,
                       const py::object& weights,
                       const std::optional<double>& total_weight) {
             in<T>(targets, "y", 2);
             const Index num_cases = targets.shape(0);
             return Obj(loss,
                        pack_targets<T>(targets, num_cases, targets.shape(1)),
                        case_weights<T>(num_cases, weights, total_weight));
           }),
           py::arg("loss"),
           py::kw_only(),
           py::arg("targets"),
           py::arg("weights"),
           py::arg("total_weight"))
      .def(
          "value",
          [](const Obj& h,
             const Architecture& net,
             const py::array& theta,
             const py::array& x,
             const Pair& l2,
             int num_threads) {
            const T* theta_data = in_shape<T>(theta, "params", {net.num_params});
            const T* x_data = in_shape<T>(x, "X", {h.num_cases(), net.num_inputs()});
            py::gil_scoped_release release;
            return h.value(net, theta_data, x_data, shift_of(l2), check_threads(num_threads));
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
          [](const Obj& h, Linearization<T>& lin, const Pair& l2) {
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
              value = h.value_and_gradient(lin, shift_of(l2), g_data);
            }
            return py::make_tuple(value, g);
          },
          py::arg("linearization"),
          py::kw_only(),
          py::arg("l2"),
          "h and dh/dparams (P,) at the params of the linearisation.")
      .def(
          "value_and_gradients",
          [](const Obj& h, Linearization<T>& lin, const Pair& l2, Index part) {
            check(lin.num_cases() == h.num_cases(),
                  "y has ",
                  h.num_cases(),
                  " cases, X has ",
                  lin.num_cases());
            const Index size = lin.net().num_params;
            auto g = out<T>({size}), first = out<T>({size}), second = out<T>({size});
            T *g_data = g.mutable_data(), *first_data = first.mutable_data();
            T* second_data = second.mutable_data();
            double value = 0;
            {
              py::gil_scoped_release release;
              value =
                  h.value_and_gradients(lin, shift_of(l2), part, g_data, first_data, second_data);
            }
            return py::make_tuple(value, g, first, second);
          },
          py::arg("linearization"),
          py::kw_only(),
          py::arg("l2"),
          py::arg("part"),
          "h, dh/dparams (P,), and the gradients of the first `part` cases, a multiple of 32, and "
          "of "
          "the others.");
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
      m, "Curvature", "B + S, B = mean of J'M J for per-case output matrices M.")
      .def(py::init([](std::shared_ptr<Linearization<T>> lin,
                       const Loss& loss,
                       const std::string& kind,
                       Index num_samples,
                       std::uint64_t seed,
                       const py::object& targets,
                       const py::object& weights,
                       const std::optional<double>& total_weight,
                       const Pair& shift) {
             CurvatureSpec<T> spec;
             spec.loss = loss;
             spec.kind = enum_from_name<OutputMatrixKind>(output_matrix_names, kind, "kind");
             spec.num_samples = num_samples;
             spec.seed = seed;
             spec.targets = pack_targets<T>(
                 targets, lin->num_cases(), loss.num_targets(lin->net().num_outputs()));
             auto case_w = case_weights<T>(lin->num_cases(), weights, total_weight);
             return std::make_shared<Op>(
                 std::move(lin), std::move(spec), std::move(case_w), shift_of(shift));
           }),
           py::arg("linearization"),
           py::arg("loss"),
           py::kw_only(),
           py::arg("kind"),
           py::arg("num_samples"),
           py::arg("seed"),
           py::arg("targets"),
           py::arg("weights"),
           py::arg("total_weight"),
           py::arg("shift"))
      .def_property("shift", &get_shift<Op>, &set_shift<Op>)
      .def_property_readonly("positive_semidefinite",
                             [](const Op& op) { return op.output().positive_semidefinite(); })
      .def_property_readonly("num_columns", [](const Op& op) { return op.output().num_columns(); })
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
          "v' (B + S) w.")
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
          "v'Av, v'Aw, w'Aw for A = B + S.")
      .def("diagonal", &diagonal_of<T, Op>, py::arg("callback"), "Diagonal of B + S (P,).")
      .def("trace", &trace_of<Op>, py::arg("callback"), "Trace of B + S.")
      .def_property_readonly("diagonal_flops", &Op::diagonal_flops, "Of the diagonal or the trace.")
      .def(
          "layer_block",
          [](Op& op, std::size_t layer) {
            const Layer& l = op.linearization().net().layers.at(layer);
            const Index size = l.outputs * (l.inputs + (l.has_bias ? 1 : 0));
            auto block = out<T>({size, size});
            T* block_data = block.mutable_data();
            py::gil_scoped_release release;
            op.layer_block(layer, block_data);
            return block;
          },
          py::arg("layer"),
          "Diagonal block of B + S that belongs to the parameters of a layer.");
}

template <class T>
void register_hessian(py::module_& m) {
  using Op = HessianOperator<T>;
  py::class_<Op, LinearOperator<T>, std::shared_ptr<Op>>(
      m, "Hessian", "H + S, H the Hessian of the mean loss.")
      .def(py::init([](const Architecture& net,
                       const Loss& loss,
                       const py::array& theta,
                       const py::array& x,
                       const py::array& targets,
                       const py::object& weights,
                       const std::optional<double>& total_weight,
                       const Pair& shift,
                       Index chunk_size,
                       int num_threads) {
             const T* theta_data = in_shape<T>(theta, "params", {net.num_params});
             const T* x_data = in_shape<T>(x, "X", {x.shape(0), net.num_inputs()});
             const Index num_cases = x.shape(0);
             auto panels = pack_targets<T>(targets, num_cases, loss.num_targets(net.num_outputs()));
             auto case_w = case_weights<T>(num_cases, weights, total_weight);
             const auto options = hessian_options<T>(num_threads, chunk_size);
             py::gil_scoped_release release;
             auto lin =
                 std::make_shared<Linearization<T>>(net, theta_data, x_data, num_cases, options);
             return std::make_shared<Op>(
                 std::move(lin), loss, std::move(panels), std::move(case_w), shift_of(shift));
           }),
           py::arg("net"),
           py::arg("loss"),
           py::kw_only(),
           py::arg("params"),
           py::arg("x").none(false),
           py::arg("targets"),
           py::arg("weights"),
           py::arg("total_weight"),
           py::arg("shift"),
           py::arg("chunk_size"),
           py::arg("num_threads"),
           py::keep_alive<1, 5>())  // x is read again for every chunk
      .def_property("shift", &get_shift<Op>, &set_shift<Op>)
      .def("diagonal", &diagonal_of<T, Op>, py::arg("callback"), "Diagonal of H + S (P,).")
      .def("trace", &trace_of<Op>, py::arg("callback"), "Trace of H + S.")
      .def_property_readonly("diagonal_flops", &Op::diagonal_flops, "Of the diagonal or the trace.")
      .def_property_readonly("num_threads", &Op::num_threads)
      .def_property_readonly("num_chunks", &Op::num_chunks);
  m.def(
      "hessian_bytes",
      [](const Architecture& net, Index num_cases, Index chunk_size, int num_threads) {
        return Op::estimate_bytes(net, num_cases, hessian_options<T>(num_threads, chunk_size));
      },
      py::arg("net"),
      py::kw_only(),
      py::arg("num_cases"),
      py::arg("chunk_size"),
      py::arg("num_threads"),
      "Bytes that a Hessian allocates.");
}

template void register_objective<float>(py::module_&);
template void register_objective<double>(py::module_&);
template void register_operator<float>(py::module_&);
template void register_operator<double>(py::module_&);
template void register_curvature<float>(py::module_&);
template void register_curvature<double>(py::module_&);
template void register_hessian<float>(py::module_&);
template void register_hessian<double>(py::module_&);

}  // namespace natgrad
