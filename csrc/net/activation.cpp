#include "net/activation.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "linalg/elementary.hpp"

namespace natgrad {
namespace {

using elementary::Exponential;

// phi(s), phi'(s), phi''(s)
template <class T>
struct Jet {
  T value, slope, bend;
};

// Long formulas are evaluated in several short loops over a block: a loop whose constants fit into
// the registers and whose chains overlap takes half the time.
constexpr Index block_size = 256;
template <class T>
using Block = std::array<T, block_size>;

// Part of the arrays of activate(), at most a block.
template <class T>
struct Elements {
  Index size;
  T *s, *derivative, *second;

  // Replaces s by the jets jet_of(s[i], i), computed in W. jet_of has no calls and no branches, so
  // compilers vectorise the loops and leave out the members that are not stored.
  template <class W = T, class F>
  void store(F jet_of) const {
    T* __restrict value = s, * __restrict slope = derivative, * __restrict bend = second;
    if (bend) {
      for (Index i = 0; i < size; ++i) {
        const Jet<W> jet = jet_of(W(value[i]), i);
        value[i] = T(jet.value);
        slope[i] = T(jet.slope);
        bend[i] = T(jet.bend);
      }
    } else if (slope) {
      for (Index i = 0; i < size; ++i) {
        const Jet<W> jet = jet_of(W(value[i]), i);
        value[i] = T(jet.value);
        slope[i] = T(jet.slope);
      }
    } else {
      for (Index i = 0; i < size; ++i) value[i] = T(jet_of(W(value[i]), i).value);
    }
  }
};

// e^(-factor |s|) and the same minus 1.
template <class T>
struct Decays {
  Block<T> value, minus_one;

  Decays(const Elements<T>& x, T factor) {
    for (Index i = 0; i < x.size; ++i) {
      const elementary::Scaled<T> part = elementary::scaled(-factor * std::abs(x.s[i]));
      value[i] = part.scale;
      minus_one[i] = part.r;
    }
    for (Index i = 0; i < x.size; ++i) {
      const Exponential<T> e =
          elementary::exponential(elementary::Scaled<T>{value[i], minus_one[i]});
      value[i] = e.value;
      minus_one[i] = e.minus_one;
    }
  }
};

// p = 1 / (1 + e^-s) and 1 - p, each with all its digits; q = p (1 - p); bend = q (1 - 2 p), with
// 1 - 2 p = -tanh(s / 2).
template <class T>
struct Sigmoid {
  T p, rest, q, bend;

  Sigmoid(T s, const Decays<T>& e, Index i) {
    const T large = 1 / (1 + e.value[i]), small = e.value[i] * large;
    p = s < 0 ? small : large;
    rest = s < 0 ? large : small;
    q = small * large;
    bend = std::copysign(q * large * e.minus_one[i], -s);
  }
};

// For every activation a struct: its name and, in one place, phi, phi', phi''.

struct Identity {
  static constexpr std::string_view name = "identity";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    x.store([](T s, Index) { return Jet<T>{s, 1, 0}; });
  }
};

// t = -m / (2 + m) with m = e^(-2 |s|) - 1;  1 - t^2 = 4 e^(-2 |s|) / (1 + e^(-2 |s|))^2
struct Tanh {
  static constexpr std::string_view name = "tanh";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    const Decays<T> e(x, 2);
    x.store([&](T s, Index i) {
      const T m = T(0.5) * e.minus_one[i], inverse = 1 / (1 + m);
      const T t = std::copysign(m * inverse, s), slope = e.value[i] * inverse * inverse;
      return Jet<T>{t, slope, -2 * t * slope};
    });
  }
};

struct Logistic {
  static constexpr std::string_view name = "logistic";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    const Decays<T> e(x, 1);
    x.store([&](T s, Index i) {
      const Sigmoid<T> at(s, e, i);
      return Jet<T>{at.p, at.q, at.bend};
    });
  }
};

struct Relu {
  static constexpr std::string_view name = "relu";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    x.store([](T s, Index) { return Jet<T>{s < 0 ? 0 : s, T(s > 0), 0}; });  // NaN stays NaN
  }
};

struct LeakyRelu {
  static constexpr std::string_view name = "leaky_relu";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    constexpr T slope = T(0.01);
    x.store([](T s, Index) { return Jet<T>{s < 0 ? slope * s : s, s > 0 ? 1 : slope, 0}; });
  }
};

struct Elu {
  static constexpr std::string_view name = "elu";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    x.store([](T s, Index) {
      const Exponential<T> e = elementary::exponential(s > 0 ? T(0) : s);
      return Jet<T>{s < 0 ? e.minus_one : s, e.value, s > 0 ? 0 : e.value};
    });
  }
};

// max(s, 0) + log(1 + e^-|s|)
struct Softplus {
  static constexpr std::string_view name = "softplus";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    const Decays<T> e(x, 1);
    x.store([&](T s, Index i) {
      const Sigmoid<T> at(s, e, i);
      return Jet<T>{(s > 0 ? s : 0) + elementary::log1p_unit(e.value[i]), at.p, at.q};
    });
  }
};

// s Phi(s), Phi' = density = e^(-s^2 / 2) / sqrt(2 pi), from the tail Phi(-|s|), which keeps its
// digits: with w = Phi(-|s|) - |s| density, phi' is w for s <= 0 and 1 - w else. phi'' = (2 - s^2)
// density. In double, whatever T. Beyond |s| = 40 the density is 0.
struct Gelu {
  static constexpr std::string_view name = "gelu";
  static constexpr double inverse_sqrt_2pi = 0.39894228040143267794;
  // sqrt(2) = high + low
  static constexpr double root_high = 0x1.6a09e667f3bcdp+0, root_low = -0x1.bdd3413b26456p-54;

  template <class T>
  static void evaluate(const Elements<T>& x) {
    Block<double> distance, e, tail;
    for (Index i = 0; i < x.size; ++i) {
      const double a = std::abs(double(x.s[i]));
      distance[i] = a > 40 ? 40 : a;
    }
    for (Index i = 0; i < x.size; ++i) e[i] = elementary::exp_minus_half_square(distance[i]);
    for (Index i = 0; i < x.size; ++i) tail[i] = elementary::scaled_normal_tail(distance[i]);
    x.template store<double>([&](double s, Index i) {
      const double t = distance[i], below = e[i] * tail[i];
      const double w = e[i] * (tail[i] - inverse_sqrt_2pi * t);
      const double two_minus_square = ((root_high - t) + root_low) * (root_high + t);
      return Jet<double>{s > 0 ? s * (1 - below) : -t * below,
                         s > 0 ? 1 - w : w,
                         two_minus_square * (inverse_sqrt_2pi * e[i])};
    });
  }
};

// phi' = p (1 + s (1 - p)), phi'' = q (2 + s (1 - 2 p))
struct Silu {
  static constexpr std::string_view name = "silu";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    constexpr T lowest = elementary::Format<T>::lowest;  // e^lowest is 0
    const Decays<T> e(x, 1);
    x.store([&](T s, Index i) {
      const Sigmoid<T> at(s, e, i);
      const T y = s < lowest ? lowest : s, z = y > -lowest ? -lowest : y;
      return Jet<T>{y * at.p, at.p * (1 + z * at.rest), 2 * at.q + z * at.bend};
    });
  }
};

// In double, whatever T. Angles that sincos can not reduce are left to libm, by value, not by place.
struct Sin {
  static constexpr std::string_view name = "sin";
  template <class T>
  static void evaluate(const Elements<T>& x) {
    Block<double> angle;
    double largest = 0;
    for (Index i = 0; i < x.size; ++i) angle[i] = double(x.s[i]);
    for (Index i = 0; i < x.size; ++i) largest = std::max(largest, std::abs(angle[i]));
    x.template store<double>([](double s, Index) {
      const elementary::SinCos at = elementary::sincos(s);
      return Jet<double>{at.sin, at.cos, -at.sin};
    });
    if (largest <= elementary::largest_angle) return;
    for (Index i = 0; i < x.size; ++i) {
      if (!(std::abs(angle[i]) > elementary::largest_angle)) continue;
      x.s[i] = T(std::sin(angle[i]));
      if (x.derivative) x.derivative[i] = T(std::cos(angle[i]));
      if (x.second) x.second[i] = -x.s[i];
    }
  }
};

// f(struct of the activation); false for a number that is no enumerator.
template <class F>
bool visit(Activation kind, F f) {
  switch (kind) {
    case Activation::identity:
      return f(Identity{}), true;
    case Activation::tanh:
      return f(Tanh{}), true;
    case Activation::logistic:
      return f(Logistic{}), true;
    case Activation::relu:
      return f(Relu{}), true;
    case Activation::leaky_relu:
      return f(LeakyRelu{}), true;
    case Activation::elu:
      return f(Elu{}), true;
    case Activation::softplus:
      return f(Softplus{}), true;
    case Activation::gelu:
      return f(Gelu{}), true;
    case Activation::silu:
      return f(Silu{}), true;
    case Activation::sin:
      return f(Sin{}), true;
  }
  return false;
}

}  // namespace

std::vector<std::string_view> activation_names() {
  std::vector<std::string_view> names;
  const auto add = [&](auto phi) { names.push_back(phi.name); };
  for (int i = 0; visit(static_cast<Activation>(i), add);) ++i;
  return names;
}

template <class T>
void activate(Activation kind, Index size, T* s, T* derivative, T* second) {
  visit(kind, [=](auto phi) {
    for (Index i = 0; i < size; i += block_size)
      phi.evaluate(Elements<T>{std::min(block_size, size - i),
                               s + i,
                               derivative ? derivative + i : nullptr,
                               second ? second + i : nullptr});
  });
}

template void activate(Activation, Index, float*, float*, float*);
template void activate(Activation, Index, double*, double*, double*);

}  // namespace natgrad
