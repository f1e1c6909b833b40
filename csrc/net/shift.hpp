// A diagonal matrix on parameter vectors with one entry for weights and one for biases:
//
//   S = weights I + (biases - weights) P_b,   P_b the projection on the biases.
//
// What is added to curvature matrices (damping + l2) and, as l2, to the objective. Kernels add the
// multiple of I by themselves; what is left is a pass over the biases alone.
#pragma once

#include "base/mutex.hpp"
#include "net/mlp.hpp"

namespace natgrad {

struct Shift {
  double weights = 0, biases = 0;
  double excess() const { return biases - weights; }
};

// A shift that one thread may set while others read it.
class SharedShift {
 public:
  explicit SharedShift(Shift shift) : shift_(shift) {}
  Shift get() const {
    const std::lock_guard lock(mutex_);
    return shift_;
  }
  void set(Shift shift) {
    const std::lock_guard lock(mutex_);
    shift_ = shift;
  }

 private:
  mutable Mutex mutex_;
  Shift shift_;
};

// f(begin, end) for the biases of every layer, as places in a parameter vector.
template <class F>
void each_bias_range(const Architecture& net, const F& f) {
  for (const Layer& layer : net.layers)
    if (layer.has_bias) f(layer.bias_offset, layer.bias_offset + layer.outputs);
}

// out += S v for the rows [begin, end) of [W_l b_l] of one layer;  v, out (P,).
template <class T>
void add_shift(const Layer& layer, Index begin, Index end, Shift shift, const T* v, T* out) {
  const auto add = [&](double factor, Index first, Index last) {
    for (Index p = first; factor != 0.0 && p < last; ++p) out[p] += static_cast<T>(factor) * v[p];
  };
  const Index weights = layer.weight_offset;
  add(shift.weights, weights + begin * layer.inputs, weights + end * layer.inputs);
  if (layer.has_bias) add(shift.biases, layer.bias_offset + begin, layer.bias_offset + end);
}

// out_k += excess P_b v_k;  v, out (K x P).
template <class T>
void add_excess(const Architecture& net, Shift shift, const T* v, Index num_vectors, T* out) {
  const T excess = static_cast<T>(shift.excess());
  if (excess == T(0)) return;
  for (Index k = 0; k < num_vectors; ++k)
    each_bias_range(net, [&](Index begin, Index end) {
      for (Index p = begin + k * net.num_params; p < end + k * net.num_params; ++p)
        out[p] += excess * v[p];
    });
}

// excess v' P_b w
template <class T>
double excess_form(const Architecture& net, Shift shift, const T* v, const T* w) {
  if (shift.excess() == 0.0) return 0.0;
  double sum = 0;
  each_bias_range(net, [&](Index begin, Index end) {
    for (Index p = begin; p < end; ++p)
      sum += static_cast<double>(v[p]) * static_cast<double>(w[p]);
  });
  return shift.excess() * sum;
}

}  // namespace natgrad
