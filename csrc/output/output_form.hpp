#pragma once

namespace natgrad {

// Per-case matrices M = Q S Q' in the space of outputs, with Q (C x columns), S = diag(+-1):
//   identity  m I                         Q = sqrt(m) I
//   diagonal  diag(m)                     Q = diag(sqrt|m|), S = diag(sign m)
//   softmax   diag(p) - p p'              Q = diag(q) H, q = sqrt(p), H the columns but the k-th of
//                                         the reflector that maps q to -e_k, so H H' = I - q q'; k
//                                         the place of the largest p, where nothing cancels
//   blocks    [[a^2, a b], [a b, b^2/2]]  Q = [[a, 0], [b, b/sqrt 2]], S = diag(1, -1), a block for
//                                         each pair of outputs c, C/2 + c
//   outer     G G', G (C x S)             Q = G
enum class OutputForm { identity, diagonal, softmax, blocks, outer };

}  // namespace natgrad
