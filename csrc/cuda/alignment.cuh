// Which rows can be read in pieces, and of which types class means may be then.
#pragma once

#include <algorithm>

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

// Calls f with a null pointer to the class means' type; false where it is none of those that the
// kernels for rows of type S are compiled for.
template <class S, class F>
bool with_class_mean_type(const Matrix& class_means, const F& f) {
  const auto call = [&](auto* type) {
    using C = std::remove_pointer_t<decltype(type)>;
    if (!is_aligned<S, C>(class_means)) return false;
    f(type);
    return true;
  };
  switch (class_means.dtype) {
    case Dtype::float32: return call(static_cast<float*>(nullptr));
    case Dtype::bfloat16: return call(static_cast<__nv_bfloat16*>(nullptr));
    case Dtype::float16:
      if constexpr (kDtypeOf<S> == Dtype::float16) {
        return call(static_cast<__half*>(nullptr));
      }
      return false;
    case Dtype::float64: break;
  }
  return false;
}

}  // namespace ndfast::cuda
