#include "curvature/column_forms.hpp"

#include <array>

namespace natgrad {

template <class T>
void add_forms_of_columns(
    const Matrix<T>& m, const T* constant, PanelView<const T> a, PanelView<T> image, double* out) {
  constexpr Index width = Tile<T>::width;
  const double scale = static_cast<double>(m.rows) / trace(m);
  RowMajor<T> matrix = m.view();
  matrix.cols = a.rows;
  ProductOptions<T> options;
  options.bias = constant;
  image.rows = m.rows;
  multiply<T>(matrix, a, image, options);
  for (Index j = 0; j < a.count; ++j) {
    std::array<double, width> sums{};
    for (Index r = 0; r < m.rows; ++r)
      for (Index q = 0; q < width; ++q) {
        const double value = r < a.rows ? static_cast<double>(a.panel(j)[r * width + q]) : 1.0;
        sums[static_cast<std::size_t>(q)] +=
            value * static_cast<double>(image.panel(j)[r * width + q]);
      }
    // positive but for rounding
    for (Index q = 0; q < width; ++q)
      out[j * width + q] += scale * std::max(0.0, sums[static_cast<std::size_t>(q)]);
  }
}

template void add_forms_of_columns(
    const Matrix<float>&, const float*, PanelView<const float>, PanelView<float>, double*);
template void add_forms_of_columns(
    const Matrix<double>&, const double*, PanelView<const double>, PanelView<double>, double*);

}  // namespace natgrad
