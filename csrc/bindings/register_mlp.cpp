#include <pybind11/stl.h>

#include "bindings/registry.hpp"
#include "net/linearization.hpp"

namespace natgrad {

void register_architecture(py::module_& m) {
  py::class_<Architecture>(
      m, "Architecture", "Widths, activations and places in the flat parameters of a net.")
      .def(py::init([](const std::vector<Index>& sizes,
                       const std::vector<std::string>& activations,
                       const std::vector<bool>& biases) {
             std::vector<Activation> kinds;
             for (const std::string& name : activations)
               kinds.push_back(enum_from_name<Activation>(activation_names(), name, "activation"));
             return Architecture(sizes, kinds, biases);
           }),
           py::arg("sizes"),
           py::arg("activations"),
           py::arg("biases"))
      .def_readonly("num_params", &Architecture::num_params)
      .def("weight_offset",
           [](const Architecture& net, std::size_t l) { return net.layers.at(l).weight_offset; })
      .def("bias_offset",
           [](const Architecture& net, std::size_t l) { return net.layers.at(l).bias_offset; });
}

template <class T>
void register_mlp(py::module_& m) {
  m.def(
      "predict",
      [](const Architecture& net, const py::array& theta, const py::array& x, int num_threads) {
        const T* theta_data = in_shape<T>(theta, "params", {net.num_params});
        const T* x_data = in_shape<T>(x, "X", {x.shape(0), net.num_inputs()});
        auto z = out<T>({x.shape(0), net.num_outputs()});
        T* z_data = z.mutable_data();
        const Index num_cases = x.shape(0);
        py::gil_scoped_release release;
        predict(net, theta_data, x_data, num_cases, check_threads(num_threads), z_data);
        return z;
      },
      py::arg("net"),
      py::kw_only(),
      py::arg("params"),
      py::arg("x"),
      py::arg("num_threads"),
      "Z (N, C) from params (P,) and x (N, d_0).");

  using Lin = Linearization<T>;
  py::class_<Lin, std::shared_ptr<Lin>>(
      m, "Linearization", "A net linearised at fixed parameters over one batch.")
      .def(py::init([](const Architecture& net,
                       const py::array& theta,
                       const py::array& x,
                       int num_threads,
                       Index chunk_size) {
             const T* theta_data = in_shape<T>(theta, "params", {net.num_params});
             const T* x_data = in_shape<T>(x, "X", {x.shape(0), net.num_inputs()});
             const Index num_cases = x.shape(0);
             const LinearizationOptions options{check_threads(num_threads), chunk_size, false};
             py::gil_scoped_release release;
             return std::make_shared<Lin>(net, theta_data, x_data, num_cases, options);
           }),
           py::arg("net"),
           py::kw_only(),
           py::arg("params"),
           py::arg("x"),
           py::arg("num_threads"),
           py::arg("chunk_size"),
           py::keep_alive<1, 4>())  // x is read again for every chunk
      .def_property_readonly("architecture", &Lin::net)
      .def_property_readonly("num_threads", &Lin::num_threads)
      .def_property_readonly("num_chunks", &Lin::num_chunks)
      .def(
          "jvp",
          [](Lin& lin, const py::array& v) {
            const T* v_data = in_shape<T>(v, "v", {v.shape(0), lin.net().num_params});
            auto jv = out<T>({v.shape(0), lin.num_cases(), lin.net().num_outputs()});
            T* jv_data = jv.mutable_data();
            const Index num_vectors = v.shape(0);
            py::gil_scoped_release release;
            lin.jvp(v_data, num_vectors, jv_data);
            return jv;
          },
          py::arg("v"),
          "J v (K, N, C) for v (K, P).")
      .def(
          "vjp",
          [](Lin& lin, const py::array& u) {
            const T* u_data =
                in_shape<T>(u, "u", {u.shape(0), lin.num_cases(), lin.net().num_outputs()});
            auto result = out<T>({u.shape(0), lin.net().num_params});
            T* result_data = result.mutable_data();
            const Index num_vectors = u.shape(0);
            py::gil_scoped_release release;
            lin.vjp(u_data, num_vectors, result_data);
            return result;
          },
          py::arg("u"),
          "J'u (K, P) for u (K, N, C).")
      .def_property_readonly("params", [](const Lin& lin) {
        auto theta = out<T>({lin.net().num_params});
        std::copy_n(lin.theta(), lin.net().num_params, theta.mutable_data());
        return theta;
      });
  m.def(
      "linearization_bytes",
      [](const Architecture& net,
         Index num_cases,
         Index num_vectors,
         Index chunk_size,
         int num_threads) {
        return Lin::estimate_bytes(
            net, num_cases, num_vectors, {check_threads(num_threads), chunk_size, false});
      },
      py::arg("net"),
      py::kw_only(),
      py::arg("num_cases"),
      py::arg("num_vectors"),
      py::arg("chunk_size"),
      py::arg("num_threads"),
      "Bytes that a linearisation allocates, with scratch for products of num_vectors at once.");
}

template void register_mlp<float>(py::module_&);
template void register_mlp<double>(py::module_&);

}  // namespace natgrad
