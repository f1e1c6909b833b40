// The C++ half of the border: views of NumPy arrays that are exactly as the core wants them. Python
// (_arrays.py) converts; here nothing is ever copied or cast.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "base/check.hpp"
#include "linalg/panels.hpp"

namespace natgrad {

namespace py = pybind11;

template <class T>
void check_array(const py::array& a, const char* name, py::ssize_t ndim) {
  if (!py::isinstance<py::array_t<T>>(a))
    throw py::type_error(std::string(name) + " has dtype " + std::string(py::str(a.dtype())) +
                         ", wanted " + std::string(py::str(py::dtype::of<T>())));
  check(a.ndim() == ndim, name, " has ", a.ndim(), " dimensions, wanted ", ndim);
  const bool aligned = reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0;
  check(
      (a.flags() & py::array::c_style) != 0 && aligned, name, " must be C-contiguous and aligned");
}

// Read view.
template <class T>
const T* in(const py::array& a, const char* name, py::ssize_t ndim) {
  check_array<T>(a, name, ndim);
  return static_cast<const T*>(a.data());
}

// Read view of known shape.
template <class T>
const T* in_shape(const py::array& a, const char* name, const std::vector<Index>& shape) {
  check_array<T>(a, name, static_cast<py::ssize_t>(shape.size()));
  for (std::size_t i = 0; i < shape.size(); ++i)
    check(a.shape(static_cast<py::ssize_t>(i)) == shape[i],
          name,
          " has length ",
          a.shape(static_cast<py::ssize_t>(i)),
          " in dimension ",
          i,
          ", wanted ",
          shape[i]);
  return static_cast<const T*>(a.data());
}

// An array that takes over the memory of a buffer.
template <class T>
py::array_t<T> adopt(Buffer<T>&& values, const std::vector<Index>& shape) {
  auto buffer = std::make_unique<Buffer<T>>(std::move(values));
  const T* data = buffer->data();
  const py::capsule owner(buffer.release(), [](void* p) { delete static_cast<Buffer<T>*>(p); });
  return py::array_t<T>(std::vector<py::ssize_t>(shape.begin(), shape.end()), data, owner);
}

// A new array; a large one in memory that is used again when it is gone.
template <class T>
py::array_t<T> out(const std::vector<Index>& shape) {
  Index size = 1;
  for (const Index n : shape) size = checked_product(size, n, "array size");
  if (checked_product(size, sizeof(T), "array size") < large_block_bytes)
    return py::array_t<T>(std::vector<py::ssize_t>(shape.begin(), shape.end()));
  return adopt(Buffer<T>(size), shape);
}

inline int check_threads(int num_threads) {
  check(num_threads >= 1, "num_threads must be >= 1, got ", num_threads);
  return num_threads;
}

}  // namespace natgrad
