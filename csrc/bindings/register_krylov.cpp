#include "base/parallel.hpp"
#include "bindings/callables.hpp"
#include "krylov/multishift.hpp"
#include "linalg/dense.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {
namespace {

py::tuple to_tuple(const CgSummary& summary) {
  return py::make_tuple(status_names[static_cast<std::size_t>(summary.status)],
                        summary.iterations,
                        summary.matvecs,
                        summary.residual_norm,
                        summary.quadratic);
}

// (iteration, x, quadratic) of every iterate; the arrays take over the memory.
template <class T>
py::list to_list(std::vector<CgIterate<T>>&& iterates) {
  py::list result;
  for (CgIterate<T>& iterate : iterates) {
    const Index size = iterate.x.size();
    const py::array_t<T> x = adopt(std::move(iterate.x), {size});
    result.append(py::make_tuple(iterate.iteration, x, iterate.quadratic));
  }
  return result;
}

template <class Summaries>
py::list to_list(const Summaries& summaries) {
  py::list result;
  for (const CgSummary& summary : summaries) result.append(to_tuple(summary));
  return result;
}

}  // namespace

template <class T>
void register_vectors(py::module_& m) {
  m.def(
      "dot",
      [](const py::array& x, const py::array& y, int num_threads) {
        const T* x_data = in<T>(x, "x", 1);
        const T* y_data = in_shape<T>(y, "y", {x.shape(0)});
        return Vectors<T>(x.shape(0), check_threads(num_threads)).dot(x_data, y_data);
      },
      py::arg("x"),
      py::arg("y"),
      py::kw_only(),
      py::arg("num_threads"),
      "x'y in double; bits independent of threads.");
  m.def(
      "scaled",
      [](double a, const py::array& x, int num_threads) {
        const T* x_data = in<T>(x, "x", 1);
        auto y = out<T>({x.shape(0)});
        T* y_data = y.mutable_data();
        const Index size = x.shape(0);
        py::gil_scoped_release release;
        Vectors<T>(size, check_threads(num_threads)).scale(a, x_data, y_data);
        return y;
      },
      py::arg("a"),
      py::arg("x"),
      py::kw_only(),
      py::arg("num_threads"),
      "a x, a new array.");
  m.def(
      "all_finite",
      [](const py::array& x, int num_threads) {
        check_array<T>(x, "x", x.ndim());
        return Vectors<T>(x.size(), check_threads(num_threads))
            .all_finite(static_cast<const T*>(x.data()));
      },
      py::arg("x"),
      py::kw_only(),
      py::arg("num_threads"),
      "Whether no element is NaN or infinite.");
  m.def(
      "transposed",
      [](const py::array& a, int num_threads) {
        const T* a_data = in<T>(a, "a", 2);
        const Index rows = a.shape(0), cols = a.shape(1);
        auto result = out<T>({cols, rows});
        T* result_data = result.mutable_data();
        bool is_finite = false;
        {
          py::gil_scoped_release release;
          is_finite =
              transpose_and_check(a_data, rows, cols, check_threads(num_threads), result_data);
        }
        return py::make_tuple(result, is_finite);
      },
      py::arg("a"),
      py::kw_only(),
      py::arg("num_threads"),
      "A' (cols, rows) of a (rows, cols), a new array, and whether all of it is finite.");
}

template <class T>
void register_krylov(py::module_& m) {
  m.def(
      "conjugate_gradients",
      [](const py::object& a,
         const py::object& preconditioner,
         const py::array& b,
         py::array& x,
         bool zero_start,
         double damping,
         double rtol,
         double atol,
         Index max_iter,
         Index min_iter,
         bool relative_progress,
         double trust_radius,
         bool keep_iterates,
         int num_threads,
         bool is_block,
         py::object callback) {
        const T* b_data = in<T>(b, "b", 2);
        const Index num_columns = b.shape(0), size = b.shape(1);
        in_shape<T>(x, "x", {num_columns, size});
        T* x_data = static_cast<T*>(x.mutable_data());
        AnyOperator<T> op(a, size), inverse(preconditioner, size);
        CgOptions options{damping,
                          rtol,
                          atol,
                          max_iter,
                          min_iter,
                          CgStopping::residual,
                          trust_radius,
                          zero_start,
                          check_threads(num_threads),
                          {}};
        if (relative_progress) options.stopping = CgStopping::relative_progress;
        options.poll = Poll(std::move(callback), is_block);
        std::vector<CgSummary> summaries;
        std::vector<CgIterate<T>> iterates;
        {
          py::gil_scoped_release release;
          summaries = conjugate_gradients<T>(*op.get(),
                                             inverse.get(),
                                             b_data,
                                             num_columns,
                                             x_data,
                                             options,
                                             keep_iterates ? &iterates : nullptr);
        }
        return py::make_tuple(to_list(summaries), to_list(std::move(iterates)));
      },
      py::arg("a"),
      py::kw_only(),
      py::arg("preconditioner"),
      py::arg("b"),
      py::arg("x"),
      py::arg("zero_start"),
      py::arg("damping"),
      py::arg("rtol"),
      py::arg("atol"),
      py::arg("max_iter"),
      py::arg("min_iter"),
      py::arg("relative_progress"),
      py::arg("trust_radius"),
      py::arg("keep_iterates"),
      py::arg("num_threads"),
      py::arg("is_block"),
      py::arg("callback"),
      "Solves (A + damping I) x = b for the rows of b (K, P) from the starts x (K, P), in place, "
      "or from 0; "
      "a list of (status, iterations, matvecs, residual_norm, quadratic), and the iterates.");
  m.def(
      "multishift_conjugate_gradients",
      [](const py::object& a,
         const py::array& b,
         const py::array& dampings,
         py::array& x,
         double rtol,
         double atol,
         Index max_iter,
         bool verify,
         int num_threads,
         py::object callback) {
        const T* b_data = in<T>(b, "b", 1);
        const double* first = in<double>(dampings, "dampings", 1);
        const std::vector<double> shifts(first, first + dampings.size());
        in_shape<T>(x, "x", {dampings.size(), b.shape(0)});
        T* x_data = static_cast<T*>(x.mutable_data());
        AnyOperator<T> op(a, b.shape(0));
        const MultishiftOptions options{rtol,
                                        atol,
                                        max_iter,
                                        verify,
                                        check_threads(num_threads),
                                        Poll(std::move(callback), true)};
        MultishiftSummary summary;
        {
          py::gil_scoped_release release;
          summary = multishift_conjugate_gradients<T>(*op.get(), b_data, shifts, x_data, options);
        }
        return py::make_tuple(to_list(summary.shifts), summary.matvecs);
      },
      py::arg("a"),
      py::kw_only(),
      py::arg("b"),
      py::arg("dampings"),
      py::arg("x"),
      py::arg("rtol"),
      py::arg("atol"),
      py::arg("max_iter"),
      py::arg("verify"),
      py::arg("num_threads"),
      py::arg("callback"),
      "Solves (A + dampings_j I) x_j = b into x (m, P); a list of (status, iterations, 0, "
      "residual_norm, quadratic), and the number of products.");
}

template void register_vectors<float>(py::module_&);
template void register_vectors<double>(py::module_&);
template void register_krylov<float>(py::module_&);
template void register_krylov<double>(py::module_&);

}  // namespace natgrad
