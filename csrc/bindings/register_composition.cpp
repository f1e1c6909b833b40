#include "bindings/callables.hpp"
#include "linalg/composition.hpp"

namespace natgrad {
namespace {

// An operator of the core, a diagonal or a function of rows, kept alive with its Python object.
template <class T>
std::shared_ptr<LinearOperator<T>> as_part(const py::handle& object, Index size) {
  struct Part {
    Part(const py::handle& o, Index size)
        : object(py::reinterpret_borrow<py::object>(o)), op(object, size) {}
    py::object object;
    AnyOperator<T> op;
  };
  const auto part = std::make_shared<Part>(object, size);
  return {part, part->op.get()};
}

}  // namespace

template <class T>
void register_composition(py::module_& m) {
  py::class_<SumOperator<T>, LinearOperator<T>, std::shared_ptr<SumOperator<T>>>(
      m, "SumOperator", "sum_i c_i A_i.")
      .def(py::init([](const py::list& parts,
                       const py::array& coefficients,
                       Index size,
                       int num_threads) {
             const auto count = static_cast<Index>(parts.size());
             const double* c = in_shape<double>(coefficients, "coefficients", {count});
             std::vector<typename SumOperator<T>::Term> terms;
             for (const py::handle part : parts) terms.push_back({*c++, as_part<T>(part, size)});
             return std::make_shared<SumOperator<T>>(
                 std::move(terms), size, check_threads(num_threads));
           }),
           py::arg("parts"),
           py::arg("coefficients"),
           py::kw_only(),
           py::arg("size"),
           py::arg("num_threads"));
  py::class_<ProductOperator<T>, LinearOperator<T>, std::shared_ptr<ProductOperator<T>>>(
      m, "ProductOperator", "A_1 A_2 .. A_n.")
      .def(py::init([](const py::list& parts, Index size) {
             std::vector<std::shared_ptr<LinearOperator<T>>> factors;
             for (const py::handle part : parts) factors.push_back(as_part<T>(part, size));
             return std::make_shared<ProductOperator<T>>(std::move(factors), size);
           }),
           py::arg("factors"),
           py::kw_only(),
           py::arg("size"));
}

template void register_composition<float>(py::module_&);
template void register_composition<double>(py::module_&);

}  // namespace natgrad
