// Which rows can be read in pieces, and of which types class means may be then.
#pragma once

#include <algorithm>
#include <type_traits>

#include "pieces.cuh"

namespace ndfast::cuda {

// For pieces of type Q, of as many elements as a student's of type S; at most 16 bytes are read at
// once.
template <class S, class Q>
bool is_aligned(const Matrix& matrix) {
  constexpr int64_t kBytes = std::min<int64_t>(kElements<S> * sizeof(Q), 16);
  const auto begins = reinterpret_cast<uintptr_t>(matrix.data) | matrix.row_bytes;
  return !matrix.data || begins % kBytes == 0;
}

template <class S>
inline constexpr Dtype kDtypeOf = Dtype::float32;
template <>
inline constexpr Dtype kDtypeOf<__half> = Dtype::float16;
template <>
inline constexpr Dtype kDtypeOf<__nv_bfloat16> = Dtype::bfloat16;

// [N, D] of type Q, D of them in whole pieces of a student of type S. No row and an absent matrix
// have no data, but a D.
template <class S, class Q = S>
bool is_in_pieces(const Matrix& matrix, int64_t D) {
  if (D % kElements<S> != 0) return false;
  return !matrix.data || (matrix.dtype == kDtypeOf<Q> && is_aligned<S, Q>(matrix));
}

// Calls f with a null pointer to the class means' type and whether labels are mixed, as a constant;
// false where no kernel for rows of type S is compiled for these. Class means are float32, or as
// the rows are where a whole model is in half precision; mixed labels have float32 ones alone.
template <class S, class F>
bool with_class_means(const Centres& centres, const F& f) {
  const Matrix& class_means = centres.class_means;
  const bool is_mixed = centres.target_b.data;
  if (class_means.dtype == Dtype::float32 && is_aligned<S, float>(class_means)) {
    auto* type = static_cast<float*>(nullptr);
    return is_mixed ? f(type, std::true_type()) : f(type, std::false_type());
  }
  if constexpr (sizeof(S) == 2) {
    if (class_means.dtype == kDtypeOf<S> && is_aligned<S, S>(class_means) && !is_mixed) {
      return f(static_cast<S*>(nullptr), std::false_type());
    }
  }
  return false;
}

}  // namespace ndfast::cuda
