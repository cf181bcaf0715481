// Which rows can be read in pieces of 16 bytes, and of which types class means may be then.
#pragma once

#include "pieces.cuh"

namespace ndfast::cuda {

inline bool is_aligned(const Matrix& matrix, int64_t bytes) {
  return !matrix.data || (reinterpret_cast<uintptr_t>(matrix.data) | matrix.row_bytes) % bytes == 0;
}

template <class S>
inline constexpr Dtype kDtypeOf = Dtype::float32;
template <>
inline constexpr Dtype kDtypeOf<__half> = Dtype::float16;
template <>
inline constexpr Dtype kDtypeOf<__nv_bfloat16> = Dtype::bfloat16;

// [N, D] of type S, D of them in whole pieces. No row and an absent matrix have no data, but a D.
template <class S>
bool is_in_pieces(const Matrix& matrix, int64_t D) {
  if (D % kElements<S> != 0) return false;
  return !matrix.data || (matrix.dtype == kDtypeOf<S> && is_aligned(matrix, 16));
}

// Calls f with a null pointer to the class means' type; false where it is none of those that the
// kernels for rows of type S are compiled for.
template <class S, class F>
bool with_class_mean_type(const Matrix& class_means, const F& f) {
  const auto call = [&](auto* type) {
    using C = std::remove_pointer_t<decltype(type)>;
    constexpr int64_t kBytes = kElements<S> * sizeof(C);
    if (!is_aligned(class_means, kBytes < 16 ? kBytes : 16)) return false;
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
