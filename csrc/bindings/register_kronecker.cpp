#include "bindings/registry.hpp"
#include "curvature/kronecker.hpp"

namespace natgrad {
namespace {

py::object to_array(const std::vector<double>& values, Index rows, Index cols) {
  if (values.empty()) return py::none();
  auto result = out<double>({rows, cols});
  std::copy(values.begin(), values.end(), result.mutable_data());
  return std::move(result);
}

template <class T>
std::shared_ptr<KroneckerFactors<T>> make_factors(const Architecture& net,
                                                  const std::string& kind,
                                                  const std::string& damping,
                                                  Index basis_period,
                                                  int num_threads) {
  KroneckerOptions options;
  options.kind = enum_from_name<KroneckerKind>(kronecker_names, kind, "kind");
  options.damping = enum_from_name<KroneckerDamping>(kronecker_damping_names, damping, "pi");
  options.basis_period = basis_period;
  options.num_threads = check_threads(num_threads);
  return std::make_shared<KroneckerFactors<T>>(net, options);
}

template <class T>
bool update(KroneckerFactors<T>& factors,
            Linearization<T>& lin,
            const Loss& loss,
            Index num_samples,
            std::uint64_t seed,
            const py::object& weights,
            double decay) {
  const CaseWeights<T> case_w = case_weights<T>(lin.num_cases(), weights);
  const py::gil_scoped_release release;
  OutputMatrices<T> output(
      loss,
      num_samples > 0 ? OutputMatrixKind::sampled_fisher : OutputMatrixKind::fisher,
      lin.net().num_outputs(),
      num_samples,
      seed,
      lin.chunk_panels());
  return factors.update(lin, output, case_w, decay);
}

}  // namespace

template <class T>
void register_kronecker(py::module_& m) {
  using Op = KroneckerFactors<T>;
  py::class_<Op, LinearOperator<T>, std::shared_ptr<Op>>(
      m, "KroneckerFactors", "Damped inverse of a Kronecker-factored Fisher matrix.")
      .def(py::init(&make_factors<T>),
           py::arg("net"),
           py::kw_only(),
           py::arg("kind"),
           py::arg("pi"),
           py::arg("basis_period"),
           py::arg("num_threads"))
      .def("update",
           &update<T>,
           py::arg("linearization"),
           py::arg("loss"),
           py::kw_only(),
           py::arg("num_samples"),
           py::arg("seed"),
           py::arg("weights"),
           py::arg("decay"),
           "Moving averages of the moments; num_samples 0 for the exact Fisher matrix. False if "
           "a moment of the batch is not finite.")
      .def("refresh",
           &Op::refresh,
           py::call_guard<py::gil_scoped_release>(),
           py::arg("damping"),
           "Inverses of the damped factors as they are now.")
      .def_property_readonly("num_updates", &Op::num_updates)
      .def_property_readonly("damping", &Op::damping)
      .def(
          "state",
          [](const Op& op) {
            auto numbers = out<T>({op.state_size()});
            op.get_state(numbers.mutable_data());
            return py::make_tuple(numbers, op.num_updates(), op.damping(), op.inverse_is_current());
          },
          "numbers (n,), num_updates, damping and whether the inverse is that of the factors.")
      .def(
          "set_state",
          [](Op& op,
             const py::array& numbers,
             Index num_updates,
             double damping,
             bool inverse_is_current) {
            const T* data = in_shape<T>(numbers, "numbers", {op.state_size()});
            op.set_state(data, num_updates, damping, inverse_is_current);
          },
          py::arg("numbers"),
          py::arg("num_updates"),
          py::arg("damping"),
          py::arg("inverse_is_current"),
          "Goes on from what state() gave.")
      .def(
          "block",
          [](const Op& op, std::size_t layer, bool damped) {
            const Layer& l = op.net().layers.at(layer);
            const Index d = l.outputs, n = LayerMoments<T>::num_inputs(l);
            KroneckerBlock block;
            {
              const py::gil_scoped_release release;
              block = op.block(layer, damped);
            }
            return py::make_tuple(to_array(block.left, d, d),
                                  to_array(block.right, n, n),
                                  to_array(block.scales, d, n));
          },
          py::arg("layer"),
          py::kw_only(),
          py::arg("damped"),
          "left (d, d), right (n, n) and scales (d, n) or None of one layer, float64; with scales "
          "the rows of left and right are the basis.");
}

template void register_kronecker<float>(py::module_&);
template void register_kronecker<double>(py::module_&);

}  // namespace natgrad
