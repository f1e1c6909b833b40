#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "bindings/arrays.hpp"
#include "linalg/operator.hpp"
#include "output/case_weights.hpp"

namespace natgrad {

// The enumerator whose name stands at the same place of `names`.
template <class Enum, class Names>
Enum enum_from_name(const Names& names, const std::string& name, const char* what) {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) return static_cast<Enum>(i);
  throw std::invalid_argument(std::string("unknown ") + what + " '" + name + "'");
}

// weights (N,) float64 or None; total_weight None for their sum.
template <class T>
CaseWeights<T> case_weights(Index num_cases,
                            const py::object& weights,
                            const std::optional<double>& total_weight = {}) {
  const double* data = nullptr;
  if (!weights.is_none())
    data = in_shape<double>(weights.cast<py::array>(), "sample_weight", {num_cases});
  return CaseWeights<T>(num_cases, data, total_weight.value_or(0.0));
}

void register_interrupt(py::module_& m);
void register_architecture(py::module_& m);
void register_loss(py::module_& m);
// LinearOperator<T>, the base of every operator that solvers multiply with.
template <class T>
void register_operator(py::module_& m);
template <class T>
void register_mlp(py::module_& m);
template <class T>
void register_outputs(py::module_& m);
template <class T>
void register_objective(py::module_& m);
template <class T>
void register_curvature(py::module_& m);
template <class T>
void register_hessian(py::module_& m);
template <class T>
void register_sample_space(py::module_& m);
template <class T>
void register_dense_matrix(py::module_& m);
template <class T>
void register_kronecker(py::module_& m);
template <class T>
void register_vectors(py::module_& m);
template <class T>
void register_krylov(py::module_& m);
template <class T>
void register_composition(py::module_& m);
template <class T>
void register_nystrom(py::module_& m);

}  // namespace natgrad
