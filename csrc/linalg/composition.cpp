#include "linalg/composition.hpp"

#include <utility>

namespace natgrad {

template <class T>
SumOperator<T>::SumOperator(std::vector<Term> terms, Index size, int num_threads)
    : terms_(std::move(terms)), vectors_(size, num_threads) {
  check(!terms_.empty(), "a sum needs at least one term");
  for (const Term& term : terms_)
    check(term.op->size() == size, "a term has size ", term.op->size(), ", wanted ", size);
}

template <class T>
void SumOperator<T>::apply_block(const T* x, Index num_vectors, T* y) {
  const Index total = checked_product(num_vectors, size(), "block of vectors");
  const auto each_vector = [&](const auto& f) {
    for (Index at = 0; at < total; at += size()) f(at);
  };
  const Term& first = terms_.front();
  first.op->apply_block(x, num_vectors, y);
  if (first.coefficient != 1.0)
    each_vector([&](Index at) { vectors_.scale(first.coefficient, y + at, y + at); });
  if (terms_.size() == 1) return;
  scratch_.use(total, [&](T* product) {
    for (auto term = terms_.begin() + 1; term != terms_.end(); ++term) {
      term->op->apply_block(x, num_vectors, product);
      each_vector([&](Index at) { vectors_.add(term->coefficient, product + at, y + at); });
    }
  });
}

template <class T>
ProductOperator<T>::ProductOperator(std::vector<std::shared_ptr<LinearOperator<T>>> factors,
                                    Index size)
    : factors_(std::move(factors)), size_(size) {
  check(factors_.size() >= 2, "a product needs at least two factors");
  for (const auto& factor : factors_)
    check(factor->size() == size, "a factor has size ", factor->size(), ", wanted ", size);
}

template <class T>
void ProductOperator<T>::apply_block(const T* x, Index num_vectors, T* y) {
  const Index total = checked_product(num_vectors, size_, "block of vectors");
  // Two places in turn, so that the last product is written to y.
  scratch_.use(total, [&](T* scratch) {
    const T* from = x;
    bool to_y = factors_.size() % 2 == 1;
    for (auto factor = factors_.rbegin(); factor != factors_.rend(); ++factor, to_y = !to_y) {
      T* to = to_y ? y : scratch;
      (*factor)->apply_block(from, num_vectors, to);
      from = to;
    }
  });
}

template class SumOperator<float>;
template class SumOperator<double>;
template class ProductOperator<float>;
template class ProductOperator<double>;

}  // namespace natgrad
