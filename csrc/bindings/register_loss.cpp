#include <pybind11/stl.h>

#include "base/random.hpp"
#include "bindings/registry.hpp"
#include "linalg/dense.hpp"
#include "output/output_matrix.hpp"

namespace natgrad {
namespace {

// The matrices of one batch, `chunk` panels of it prepared at a time.
template <class T>
struct BatchMatrices {
  Index num_cases, num_outputs, chunk;
  int num_threads;
  Panels<T> z, y;
  OutputMatrices<T> matrices;

  // f(first, count) for the chunks, prepared.
  template <class F>
  void for_chunks(F&& f) {
    for (Index first = 0; first < z.count(); first += chunk) {
      const Index count = std::min(chunk, z.count() - first);
      matrices.prepare(
          first,
          z.view().slice(first, count),
          y.empty() ? PanelView<const T>{} : PanelView<const T>(y.view().slice(first, count)),
          num_threads);
      f(first, count);
    }
  }

  Panels<T> pack(const py::array& a, const char* name, Index rows) const {
    Panels<T> panels(rows, num_cases);
    pack_cases(in_shape<T>(a, name, {num_cases, rows}),
               num_cases,
               rows,
               0,
               panels.count(),
               Fill::last_case,
               panels.view());
    return panels;
  }

  py::array_t<T> unpack(const Panels<T>& panels) const {
    auto a = out<T>({num_cases, panels.rows()});
    unpack_cases<T>(panels.view(), num_cases, a.mutable_data());
    return a;
  }
};

template <class T>
BatchMatrices<T> make_batch(Loss loss,
                            const std::string& kind,
                            const py::array& z,
                            const py::object& y,
                            Index samples,
                            std::uint64_t seed,
                            Index chunk,
                            int num_threads) {
  const T* z_data = in<T>(z, "z", 2);
  const Index n = z.shape(0), outputs = z.shape(1), panels = Panels<T>::count_for(n);
  if (chunk == 0) chunk = panels;
  const auto matrix_kind =
      enum_from_name<OutputMatrixKind>(output_matrix_names, kind, "output matrix");
  BatchMatrices<T> batch{n,
                         outputs,
                         chunk,
                         check_threads(num_threads),
                         Panels<T>(outputs, n),
                         Panels<T>(),
                         OutputMatrices<T>(loss, matrix_kind, outputs, samples, seed, chunk)};
  pack_cases(z_data, n, outputs, 0, panels, Fill::last_case, batch.z.view());
  check(!y.is_none() || !batch.matrices.needs_targets(), "y is None, wanted targets");
  if (!y.is_none()) batch.y = batch.pack(y.cast<py::array>(), "y", loss.num_targets(outputs));
  return batch;
}

template <class T>
py::array_t<T> factor(BatchMatrices<T>& b) {
  const Index columns = b.matrices.num_columns();
  auto q = out<T>({b.num_cases, b.num_outputs, columns});
  Panels<T> u(b.num_outputs, b.num_cases);
  for (Index k = 0; k < columns; ++k) {
    b.for_chunks([&](Index first, Index count) {
      b.matrices.factor_column(first, k, u.view().slice(first, count));
    });
    const auto rows = b.unpack(u);
    for (Index i = 0; i < b.num_cases * b.num_outputs; ++i)
      q.mutable_data()[i * columns + k] = rows.data()[i];
  }
  return q;
}

template <class T>
py::array_t<T> signs(BatchMatrices<T>& b) {
  const Index columns = b.matrices.num_columns(), width = Tile<T>::width;
  auto s = out<T>({b.num_cases, columns});
  Buffer<T> lanes(b.z.count() * width);
  for (Index k = 0; k < columns; ++k) {
    b.for_chunks([&](Index first, Index count) {
      b.matrices.factor_sign(first, k, count, lanes.data() + first * width);
    });
    for (Index i = 0; i < b.num_cases; ++i) s.mutable_data()[i * columns + k] = lanes[i];
  }
  return s;
}

}  // namespace

void register_loss(py::module_& m) {
  py::class_<Loss>(m, "Loss", "A loss of the core: its kind and parameters.")
      .def(py::init([](const std::string& name, double degrees_of_freedom, double scale) {
             return Loss{
                 enum_from_name<LossKind>(loss_names, name, "loss"), degrees_of_freedom, scale};
           }),
           py::arg("name"),
           py::kw_only(),
           py::arg("degrees_of_freedom") = 0.0,
           py::arg("scale") = 1.0)
      .def("num_targets", &Loss::num_targets, py::arg("num_outputs"))
      .def_property_readonly("fisher_is_hessian", &Loss::fisher_is_hessian)
      .def_property_readonly("hessian_needs_targets", &Loss::hessian_needs_targets);
  m.def(
      "philox",
      [](const Philox::Key& key, const Philox::Counter& counter, std::size_t count) {
        Philox bits(key, counter);
        std::vector<std::uint64_t> words(count);
        for (std::uint64_t& word : words) word = bits();
        return words;
      },
      py::arg("key"),
      py::arg("counter"),
      py::arg("count"),
      "Words of the random generator, as numpy.random.Philox(counter, key).random_raw(count).");
}

template <class T>
void register_output_matrix(py::module_& m) {
  using Batch = BatchMatrices<T>;
  py::class_<Batch>(m, "OutputMatrices", "Per-case (C x C) matrices in the space of outputs.")
      .def(py::init(&make_batch<T>),
           py::arg("loss"),
           py::arg("kind"),
           py::arg("z"),
           py::arg("y"),
           py::kw_only(),
           py::arg("samples") = 1,
           py::arg("seed") = 0,
           py::arg("chunk") = 0,
           py::arg("num_threads") = 1)
      .def_property_readonly("num_columns", [](const Batch& b) { return b.matrices.num_columns(); })
      .def_property_readonly("needs_targets",
                             [](const Batch& b) { return b.matrices.needs_targets(); })
      .def_property_readonly("positive_semidefinite",
                             [](const Batch& b) { return b.matrices.positive_semidefinite(); })
      .def(
          "multiply",
          [](Batch& b, const py::array& r) {
            Panels<T> panels = b.pack(r, "r", b.num_outputs);
            b.for_chunks([&](Index first, Index count) {
              b.matrices.multiply(first, panels.view().slice(first, count));
            });
            return b.unpack(panels);
          },
          py::arg("r"),
          "M_i r_i (N, C).")
      .def(
          "inner",
          [](Batch& b, const py::array& r, const py::array& s) {
            const Panels<T> rp = b.pack(r, "r", b.num_outputs), sp = b.pack(s, "s", b.num_outputs);
            std::vector<double> values(static_cast<std::size_t>(rp.count() * Tile<T>::width));
            b.for_chunks([&](Index first, Index count) {
              b.matrices.inner(first,
                               rp.view().slice(first, count),
                               sp.view().slice(first, count),
                               values.data() + first * Tile<T>::width);
            });
            values.resize(static_cast<std::size_t>(b.num_cases));
            return values;
          },
          py::arg("r"),
          py::arg("s"),
          "r_i' M_i s_i, N of them.")
      .def("factor", &factor<T>, "Q (N, C, num_columns), column by column.")
      .def("signs", &signs<T>, "S (N, num_columns).")
      .def(
          "multiply_factor",
          [](Batch& b, const py::array& w) {
            const Panels<T> panels = b.pack(w, "w", b.matrices.num_columns());
            Panels<T> u(b.num_outputs, b.num_cases);
            b.for_chunks([&](Index first, Index count) {
              b.matrices.multiply_factor(
                  first, panels.view().slice(first, count), u.view().slice(first, count));
            });
            return b.unpack(u);
          },
          py::arg("w"),
          "Q_i w_i (N, C).")
      .def(
          "multiply_factor_transposed",
          [](Batch& b, const py::array& r) {
            const Panels<T> panels = b.pack(r, "r", b.num_outputs);
            Panels<T> w(b.matrices.num_columns(), b.num_cases);
            b.for_chunks([&](Index first, Index count) {
              b.matrices.multiply_factor_transposed(
                  first, panels.view().slice(first, count), w.view().slice(first, count));
            });
            return b.unpack(w);
          },
          py::arg("r"),
          "Q_i' r_i (N, num_columns).")
      .def(
          "divide_factor",
          [](Batch& b, const py::array& e) {
            Panels<T> rest = b.pack(e, "e", b.num_outputs);
            Panels<T> r(b.matrices.num_columns(), b.num_cases);
            b.for_chunks([&](Index first, Index count) {
              b.matrices.divide_factor(
                  first, rest.view().slice(first, count), r.view().slice(first, count));
            });
            return py::make_tuple(b.unpack(r), b.unpack(rest));
          },
          py::arg("e"),
          "r (N, num_columns) and rest (N, C) of e = Q r + rest.");
}

template void register_output_matrix<float>(py::module_&);
template void register_output_matrix<double>(py::module_&);

}  // namespace natgrad
