#include <pybind11/stl.h>

#include "bindings/registry.hpp"
#include "output/loss.hpp"
#include "output/sampling.hpp"

namespace natgrad {

void register_loss(py::module_& m) {
  py::class_<Loss>(m, "Loss", "A loss of the core: its kind and parameters.")
      .def(py::init<const std::string&, const Loss::Parameters&>(),
           py::arg("name"),
           py::arg("parameters"))
      .def("num_targets", &Loss::num_targets, py::arg("num_outputs"))
      .def_property_readonly("hessian_needs_targets", &Loss::hessian_needs_targets);
}

template <class T>
void register_outputs(py::module_& m) {
  m.def(
      "predictive_mean",
      [](const Loss& loss, const py::array& z, int num_threads) {
        const T* z_data = in<T>(z, "z", 2);
        const Index num_cases = z.shape(0), num_outputs = z.shape(1);
        auto mean = out<T>({num_cases, loss.num_targets(num_outputs)});
        T* mean_data = mean.mutable_data();
        py::gil_scoped_release release;
        predictive_mean(
            loss, z_data, num_cases, num_outputs, check_threads(num_threads), mean_data);
        return mean;
      },
      py::arg("loss"),
      py::arg("z"),
      py::kw_only(),
      py::arg("num_threads"),
      "Means (N, num_targets) of the predictive laws at outputs z (N, C).");
  m.def(
      "draw_gradients",
      [](const Loss& loss,
         const py::array& z,
         Index num_samples,
         std::uint64_t seed,
         int num_threads) {
        const T* z_data = in<T>(z, "z", 2);
        const Index num_cases = z.shape(0), num_outputs = z.shape(1);
        check(num_samples >= 1, "samples must be >= 1, got ", num_samples);
        auto g = out<T>({num_cases, num_samples, num_outputs});
        T* g_data = g.mutable_data();
        py::gil_scoped_release release;
        draw_gradients(loss,
                       seed,
                       num_samples,
                       z_data,
                       num_cases,
                       num_outputs,
                       check_threads(num_threads),
                       g_data);
        return g;
      },
      py::arg("loss"),
      py::arg("z"),
      py::kw_only(),
      py::arg("num_samples"),
      py::arg("seed"),
      py::arg("num_threads"),
      "dL/dz (N, S, C) at S targets for every case, drawn from the predictive laws at z (N, C).");
}

template void register_outputs<float>(py::module_&);
template void register_outputs<double>(py::module_&);

}  // namespace natgrad
