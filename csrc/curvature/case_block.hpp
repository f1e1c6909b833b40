// The rows of J for a block of cases, by their factors: the row of case i and column c of Q_i is
//   sqrt(w_i) Q_ic' J_i = [u_l a_{l-1}', u_l]_l,   u_l the deltas of sqrt(w_i) Q_ic,
// kept as u_l and a_{l-1}, in double whatever T is.
#pragma once

#include <functional>

#include "curvature/gauss_newton.hpp"

namespace natgrad {

struct CaseBlock {
  Index count = 0;  // panels of cases
  std::size_t num_columns = 0;
  std::vector<Panels<double>> inputs;               // a_{l-1}, (d_{l-1} x cases)
  std::vector<std::vector<Panels<double>>> deltas;  // [column][layer]: u_l, (d_l x cases)
  std::vector<Buffer<double>> signs;                // [column]: +-1 of every case; empty: all 1
};

// Deltas of one case and column, in bytes.
double delta_bytes(const Architecture& net);

// Columns of a block: no more than 32 MiB of deltas are alive.
template <class T>
Index columns_per_block(const Architecture& net, Index num_columns);

// f(block) for Tile::depth cases after the others, each with one group of columns after the other.
// Chunks of a batch are made of whole such blocks, so what is summed up block by block has the same
// bits for any chunk size. 2 N P flops a column, none in the first layer.
template <class T>
void visit_case_blocks(CurvatureOperator<T>& curvature,
                       const std::function<void(const CaseBlock&)>& f);

}  // namespace natgrad
