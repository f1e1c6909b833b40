#include <cstring>
#include <numeric>

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

// Weights count as numbers of cases.
template <class T>
const char* update(KroneckerFactors<T>& factors,
                   Linearization<T>& lin,
                   const Loss& loss,
                   Index num_samples,
                   std::uint64_t seed,
                   const py::object& weights,
                   Index num_cases,
                   KroneckerUpdate options) {
  check(num_cases >= 1 && num_cases <= lin.num_cases(),
        "num_cases must be in 1 .. ",
        lin.num_cases(),
        ", got ",
        num_cases);
  const CaseWeights<T> case_w = case_weights<T>(num_cases, weights);
  options.weight = static_cast<double>(num_cases);
  if (!weights.is_none()) {
    const py::array array = weights.cast<py::array>();
    const double* data = in_shape<double>(array, "sample_weight", {num_cases});
    options.weight = std::accumulate(data, data + num_cases, 0.0);
  }
  const py::gil_scoped_release release;
  OutputMatrices<T> output(
      loss,
      num_samples > 0 ? OutputMatrixKind::sampled_fisher : OutputMatrixKind::fisher,
      lin.net().num_outputs(),
      num_samples,
      seed,
      lin.chunk_panels());
  const UpdateStatus status = factors.update(lin, output, case_w, options);
  return update_status_names[static_cast<std::size_t>(status)].data();
}

// The arrays of a state by the names that they have for users, in the order of messages.
template <class T>
constexpr std::array<std::pair<const char*, Matrix<T> KroneckerArrays<T>::*>, 10> state_arrays = {{
    {"A", &KroneckerArrays<T>::a},
    {"G", &KroneckerArrays<T>::g},
    {"S", &KroneckerArrays<T>::s},
    {"basis_A", &KroneckerArrays<T>::basis_a},
    {"basis_G", &KroneckerArrays<T>::basis_g},
    {"inverse_A", &KroneckerArrays<T>::inverse_a},
    {"inverse_G", &KroneckerArrays<T>::inverse_g},
    {"inverse_S", &KroneckerArrays<T>::inverse_s},
    {"inverse_basis_A", &KroneckerArrays<T>::inverse_basis_a},
    {"inverse_basis_G", &KroneckerArrays<T>::inverse_basis_g},
}};

// An array that owns the matrix, which has no padding.
template <class T>
py::array_t<T> to_array(Matrix<T>&& m) {
  auto buffer = std::make_unique<Buffer<T>>(std::move(m.data));
  const T* data = buffer->data();
  const py::capsule owner(buffer.release(), [](void* p) { delete static_cast<Buffer<T>*>(p); });
  return py::array_t<T>({m.rows, m.cols}, data, owner);
}

template <class T>
py::tuple get_state(const KroneckerFactors<T>& factors) {
  KroneckerState<T> state;
  {
    const py::gil_scoped_release release;
    state = factors.state();
  }
  py::list layers;
  for (KroneckerArrays<T>& arrays : state.layers) {
    py::dict layer;
    for (const auto& [name, member] : state_arrays<T>)
      if ((arrays.*member).rows > 0) layer[name] = to_array(std::move(arrays.*member));
    layers.append(layer);
  }
  return py::make_tuple(layers, state.num_updates, state.refreshed_at, state.weight, state.damping);
}

// The matrices are views: set_state() copies what it keeps.
template <class T>
void set_state(KroneckerFactors<T>& factors,
               const py::list& layers,
               Index num_updates,
               Index refreshed_at,
               double weight,
               double damping) {
  KroneckerState<T> state;
  state.num_updates = num_updates;
  state.refreshed_at = refreshed_at;
  state.weight = weight;
  state.damping = damping;
  check(layers.size() <= factors.net().layers.size(), "too many layers");
  for (const py::handle& item : layers) {
    const Layer& net_layer = factors.net().layers[state.layers.size()];
    const Index d = net_layer.outputs, n = net_layer.augmented_inputs();
    const py::dict layer = item.cast<py::dict>();
    KroneckerArrays<T> arrays;
    for (const auto& [name, member] : state_arrays<T>) {
      if (!layer.contains(name)) continue;
      const char side = name[std::strlen(name) - 1];
      const Index rows = side == 'A' ? n : d, cols = side == 'G' ? d : n;
      const py::array array = layer[name].template cast<py::array>();
      const T* data = in_shape<T>(array, name, {rows, cols});
      Matrix<T>& m = arrays.*member;
      m.rows = rows;
      m.cols = m.ld = cols;
      m.data = Buffer<T>(const_cast<T*>(data), rows * cols);
    }
    state.layers.push_back(std::move(arrays));
  }
  const py::gil_scoped_release release;
  factors.set_state(state);
}

// left (d, d), right (n, n) and scales (d, n) or None.
py::tuple to_tuple(const Layer& layer, const KroneckerBlock& block) {
  const Index d = layer.outputs, n = layer.augmented_inputs();
  return py::make_tuple(
      to_array(block.left, d, d), to_array(block.right, n, n), to_array(block.scales, d, n));
}

py::list to_list(const Architecture& net, const std::vector<KroneckerBlock>& blocks) {
  py::list result;
  for (std::size_t l = 0; l < blocks.size(); ++l) result.append(to_tuple(net.layers[l], blocks[l]));
  return result;
}

}  // namespace

template <class T>
void register_kronecker(py::module_& m) {
  using Op = KroneckerFactors<T>;
  using Snapshot = typename Op::Snapshot;
  m.def("remembered_weight",
        &remembered_weight,
        py::kw_only(),
        py::arg("num_updates"),
        py::arg("weight"),
        py::arg("decay"),
        "Weight of an average of batches that counts beside that of the next one.");
  py::class_<Snapshot>(m, "KroneckerSnapshot", "What KroneckerFactors held at some time.");
  py::class_<Op, LinearOperator<T>, std::shared_ptr<Op>>(
      m, "KroneckerFactors", "Damped inverse of a Kronecker-factored Fisher matrix.")
      .def(py::init(&make_factors<T>),
           py::arg("net"),
           py::kw_only(),
           py::arg("kind"),
           py::arg("pi"),
           py::arg("basis_period"),
           py::arg("num_threads"))
      .def(
          "update",
          [](Op& op,
             Linearization<T>& lin,
             const Loss& loss,
             Index num_samples,
             std::uint64_t seed,
             const py::object& weights,
             Index num_cases,
             double decay,
             Index num_updates) {
            return update<T>(
                op, lin, loss, num_samples, seed, weights, num_cases, {num_updates, 0.0, decay});
          },
          py::arg("linearization"),
          py::arg("loss"),
          py::kw_only(),
          py::arg("num_samples"),
          py::arg("seed"),
          py::arg("weights"),
          py::arg("num_cases"),
          py::arg("decay"),
          py::arg("num_updates"),
          "Moving averages of the moments of the first cases of a linearisation, which `weights` "
          "are of; num_samples 0 for the exact Fisher matrix. 'done', "
          "'not_finite' if a moment of the batch is not finite, 'outrun' if there were not "
          "num_updates of them before.")
      .def("refresh",
           &Op::refresh,
           py::call_guard<py::gil_scoped_release>(),
           py::arg("damping"),
           "Inverses of the damped factors as they are now.")
      .def_property_readonly("num_updates",
                             [](const Op& op) {
                               const py::gil_scoped_release release;
                               return op.num_updates();
                             })
      .def_property_readonly("damping",
                             [](const Op& op) {
                               const py::gil_scoped_release release;
                               return op.damping();
                             })
      .def("state",
           &get_state<T>,
           "[{name: array}] for each layer, num_updates, refreshed_at, weight and damping.")
      .def("set_state",
           &set_state<T>,
           py::kw_only(),
           py::arg("layers"),
           py::arg("num_updates"),
           py::arg("refreshed_at"),
           py::arg("weight"),
           py::arg("damping"),
           "Goes on from what state() gave.")
      .def(
          "snapshot",
          [](const Op& op) {
            const py::gil_scoped_release release;
            return op.snapshot();
          },
          "All that calls change, at no cost.")
      .def(
          "restore",
          [](Op& op, const Snapshot& snapshot) {
            const py::gil_scoped_release release;
            op.restore(snapshot);
          },
          py::arg("snapshot"),
          "Goes back to a snapshot of these factors.")
      .def(
          "block",
          [](const Op& op, std::size_t layer, bool damped) {
            const Layer& net_layer = op.net().layers.at(layer);
            KroneckerBlock block;
            {
              const py::gil_scoped_release release;
              block = op.block(layer, damped);
            }
            return to_tuple(net_layer, block);
          },
          py::arg("layer"),
          py::kw_only(),
          py::arg("damped"),
          "One of blocks().")
      .def(
          "blocks",
          [](const Op& op, bool damped) {
            std::vector<KroneckerBlock> blocks;
            {
              const py::gil_scoped_release release;
              blocks = op.blocks(damped);
            }
            return to_list(op.net(), blocks);
          },
          py::kw_only(),
          py::arg("damped"),
          "left (d, d), right (n, n) and scales (d, n) or None of each layer, float64; with scales "
          "the rows of left and right are the basis.")
      .def(
          "factors",
          [](const Op& op) {
            std::vector<std::pair<KroneckerBlock, KroneckerBlock>> factors;
            {
              const py::gil_scoped_release release;
              factors = op.factors();
            }
            py::list result;
            for (std::size_t l = 0; l < factors.size(); ++l) {
              const Layer& layer = op.net().layers[l];
              const py::tuple pair = to_tuple(layer, factors[l].first);
              const py::tuple in_basis = to_tuple(layer, factors[l].second);
              result.append(
                  py::make_tuple(pair[0], pair[1], in_basis[0], in_basis[1], in_basis[2]));
            }
            return result;
          },
          "G (d, d) and A (n, n) of each layer, then those of blocks() or None; float64.")
      .def(
          "eigenvalues",
          [](Op& op) {
            auto result = out<double>({op.size()});
            double* data = result.mutable_data();
            const py::gil_scoped_release release;
            for (const std::vector<double>& layer : op.eigenvalues())
              data = std::copy(layer.begin(), layer.end(), data);
            return result;
          },
          "Eigenvalues (P,) of the approximation, a layer after the other.")
      .def("log_det",
           &Op::log_det,
           py::call_guard<py::gil_scoped_release>(),
           py::arg("damping"),
           "log det of the matrix that refresh(damping) would invert.")
      .def(
          "apply_root",
          [](Op& op, const py::array& v) {
            const T* v_data = in_shape<T>(v, "v", {v.shape(0), op.size()});
            auto y = out<T>({v.shape(0), op.size()});
            T* y_data = y.mutable_data();
            const Index num_vectors = v.shape(0);
            const py::gil_scoped_release release;
            op.apply_root(v_data, num_vectors, y_data);
            return y;
          },
          py::arg("v"),
          "S v (K, P) for v (K, P), S S' the inverse.");
}

template void register_kronecker<float>(py::module_&);
template void register_kronecker<double>(py::module_&);

}  // namespace natgrad
