#include <Eigen/Core>

#include "base/memory.hpp"
#include "base/parallel.hpp"
#include "bindings/registry.hpp"
#include "linalg/dense.hpp"
#include "net/activation.hpp"
#include "output/loss.hpp"

namespace natgrad {
namespace {

py::tuple to_tuple(const std::vector<std::string_view>& names) {
  py::tuple result(names.size());
  for (std::size_t i = 0; i < names.size(); ++i)
    result[i] = py::str(names[i].data(), names[i].size());
  return result;
}

// Up to 3.4 a version is WORLD.MAJOR.MINOR; from 5.0 on MAJOR.MINOR.PATCH.
std::string eigen_version() {
  std::ostringstream version;
#ifdef EIGEN_PATCH_VERSION
  version << EIGEN_MAJOR_VERSION << '.' << EIGEN_MINOR_VERSION << '.' << EIGEN_PATCH_VERSION;
#else
  version << EIGEN_WORLD_VERSION << '.' << EIGEN_MAJOR_VERSION << '.' << EIGEN_MINOR_VERSION;
#endif
  return version.str();
}

std::string pybind11_version() {
  std::ostringstream version;
  version << PYBIND11_VERSION_MAJOR << '.' << PYBIND11_VERSION_MINOR;
  return version.str();
}

py::dict build_info() {
  py::dict info;
  info["version"] = NATGRAD_VERSION;
  info["compiler"] = NATGRAD_COMPILER;
  info["cxx_flags"] = NATGRAD_CXX_FLAGS;
  info["build_type"] = NATGRAD_BUILD_TYPE;
  info["isa"] = NATGRAD_ISA_NAME;
  info["eigen_version"] = eigen_version();
  info["eigen_origin"] = NATGRAD_EIGEN_ORIGIN;
  info["pybind11_version"] = pybind11_version();
  info["openmp"] = has_openmp;
  return info;
}

template <class T>
void register_all(py::module_ m) {
  register_operator<T>(m);
  register_mlp<T>(m);
  register_outputs<T>(m);
  register_objective<T>(m);
  register_curvature<T>(m);
  register_hessian<T>(m);
  register_sample_space<T>(m);
  register_dense_matrix<T>(m);
  register_kronecker<T>(m);
  register_vectors<T>(m);
  register_krylov<T>(m);
  register_composition<T>(m);
  register_nystrom<T>(m);
}

}  // namespace
}  // namespace natgrad

// One name for every instruction set: the loader (_isa.py) gives the file, Python the name.
PYBIND11_MODULE(_core, m) {
  namespace py = pybind11;
  m.doc() =
      "Private core of natgrad_fast; f32 and f64 hold the same functions for both float types.";
  m.attr("__version__") = NATGRAD_VERSION;
  m.attr("activation_names") = natgrad::to_tuple(natgrad::activation_names());
  m.attr("loss_names") = natgrad::to_tuple(natgrad::Loss::names());
  m.def("build_info", &natgrad::build_info, "How this module was built.");
  m.def("max_threads", &natgrad::max_threads, "Threads OpenMP would use now; 1 without OpenMP.");
  m.def(
      "fma_peak",
      [](int num_threads, double seconds) {
        py::gil_scoped_release release;
        return natgrad::measure_fma_peak<float>(natgrad::check_threads(num_threads), seconds);
      },
      py::arg("num_threads"),
      py::arg("seconds"),
      "Measured float32 multiply-add peak, in 1e9 flop/s.");
  m.def("release_memory",
        &natgrad::release_memory,
        py::call_guard<py::gil_scoped_release>(),
        "Gives memory kept for reuse back to the system; its size in bytes.");
  natgrad::register_interrupt(m);
  natgrad::register_architecture(m);
  natgrad::register_loss(m);
  natgrad::register_all<float>(m.def_submodule("f32"));
  natgrad::register_all<double>(m.def_submodule("f64"));
}
