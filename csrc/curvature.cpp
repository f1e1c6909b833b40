#include "curvature.hpp"

#include <utility>

#include "vectors.hpp"

namespace natgrad {

template <class T>
CurvatureOperator<T>::CurvatureOperator(std::shared_ptr<Linearization<T>> linearization,
                                        Loss loss,
                                        CaseWeights<T> weights,
                                        double shift)
    : linearization_(std::move(linearization)),
      output_(loss,
              OutputMatrixKind::fisher,
              linearization_->net().num_outputs(),
              1,
              0,
              linearization_->outputs().count),
      weights_(std::move(weights)),
      shift_(shift),
      multiply_output_([this](Index, Index first, PanelView<T> r) {
        output_.multiply(first, r);
        weights_.apply(first, r);
      }) {
  check(weights_.num_cases() == linearization_->num_cases(),
        "weights for ",
        weights_.num_cases(),
        " cases, batch of ",
        linearization_->num_cases());
  output_.prepare(0, linearization_->outputs(), {}, linearization_->num_threads());
  linearization_->reserve(1);
}

template <class T>
void CurvatureOperator<T>::apply_block(const T* x, Index num_vectors, T* y) {
  linearization_->multiply_gauss_newton(x, num_vectors, multiply_output_, shift_, y);
}

template <class T>
double CurvatureOperator<T>::quadratic_form(const T* v, const T* w) {
  Buffer<double> values(linearization_->outputs().count * Tile<T>::width);
  linearization_->push_forward_pair(v, w, [&](Index first, PanelView<T> jv, PanelView<T> jw) {
    output_.inner(first, jv, jw, values.data() + first * Tile<T>::width);
  });
  double sum = weights_.mean(values.data());
  if (shift_ != 0.0) sum += shift_ * Vectors<T>(size(), linearization_->num_threads()).dot(v, w);
  return sum;
}

template <class T>
std::array<double, 3> CurvatureOperator<T>::quadratic_forms(const T* v, const T* w) {
  const Index size_of_values = linearization_->outputs().count * Tile<T>::width;
  Buffer<double> vv(size_of_values), vw(size_of_values), ww(size_of_values);
  linearization_->push_forward_pair(v, w, [&](Index first, PanelView<T> jv, PanelView<T> jw) {
    const Index place = first * Tile<T>::width;
    output_.inner(first, jv, jv, vv.data() + place);
    output_.inner(first, jv, jw, vw.data() + place);
    output_.inner(first, jw, jw, ww.data() + place);
  });
  std::array<double, 3> forms{
      weights_.mean(vv.data()), weights_.mean(vw.data()), weights_.mean(ww.data())};
  if (shift_ != 0.0) {
    Vectors<T> vectors(size(), linearization_->num_threads());
    forms[0] += shift_ * vectors.dot(v, v);
    forms[1] += shift_ * vectors.dot(v, w);
    forms[2] += shift_ * vectors.dot(w, w);
  }
  return forms;
}

template class CurvatureOperator<float>;
template class CurvatureOperator<double>;

}  // namespace natgrad
