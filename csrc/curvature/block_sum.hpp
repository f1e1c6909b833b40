// Sums over the rows of J, without a matrix of size N x P.
#pragma once

#include "curvature/case_block.hpp"

namespace natgrad {

// F (P x P, row-major) += sum over the rows j of a block of cases, and their signs s, s j j', at and
// below the diagonal; above it parts of the sums may be left. In one of two ways:
//   by rows: they are written out and multiplied, P^2 flops for each of the N C
//   by units: for unit r of layer l and all (r', s') from there on
//     F[(r', s'), (r, s)] += sum_i V_i[r', s'] a_{l-1}^i[s],   V_i[r', s'] = h_i[r'] a_{l'-1}^i[s'],
//     h_i[r'] = sum_c s_ic u^ic[r] u^ic[r']
//   P^2 flops a case however many columns there are, and some more to write V
class BlockSum {
 public:
  // For blocks of `columns` columns and at most `cases` cases.
  BlockSum(const Architecture& net, Index columns, Index cases, int num_threads);
  void add(const CaseBlock& block, double* f);
  // Of the sum over `cases` cases, about.
  static double estimate_flops(const Architecture& net, Index columns, Index cases);

 private:
  struct Unit {
    std::size_t layer;
    Index row;
  };
  struct Scratch {
    Panels<double> pairs, rows;  // h (units of a layer x cases), V (rows_per_task x cases)
    Buffer<double> product;      // (rows_per_task x inputs of a layer)
  };
  Index size() const { return net_.num_params; }
  void add_rows(const CaseBlock& block, std::size_t column, double* f);
  void write_rows(const CaseBlock& block, std::size_t column, Index j);
  void add_units(const CaseBlock& block, double* f);
  void add_unit(const CaseBlock& block, Unit unit, Scratch& scratch, double* f) const;
  void write_pairs(const CaseBlock& block, Unit unit, std::size_t l, PanelView<double> h) const;
  // F[p + i, (r, s)] and F[p + i, bias of r] += the sums over cases of v[i] a[s] and of v[i].
  void add_products(
      PanelView<const double> v, Index p, Unit unit, Scratch& scratch, double* f) const;

  const Architecture& net_;
  int num_threads_;
  std::vector<Unit> units_;               // empty: by rows
  Panels<double> rows_, columns_;         // by rows: (P x cases), and transposed
  std::vector<Panels<double>> features_;  // by units: a_{l-1}', (cases x d_{l-1})
  std::vector<Scratch> scratch_;          // per thread
};

}  // namespace natgrad
