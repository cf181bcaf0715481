// One row's loss and gradient coefficients from its norms and its dot product. Shared by every
// compiled backend; the definition it must equal is ndfast/backends/reference.py.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define NDFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define NDFAST_HOST_DEVICE inline
#endif

namespace ndfast {

// 1 / x of a normal number or of 0, as eps is. A GPU's own instruction: around it the compiler
// would put six more, for numbers below the normal ones.
template <class T>
NDFAST_HOST_DEVICE T reciprocal(T x) {
  return T(1) / x;
}
#ifdef __CUDA_ARCH__
template <>
NDFAST_HOST_DEVICE float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#endif

// What one pass over a row collects; T is the type of the sums, float or double.
template <class T>
struct RowSums {
  T student_squared;
  T teacher_squared;
  T centre_squared;
  T student_dot_centre;
};

// d/ds = alpha*c + beta*s,  d/dt = gamma*t,  d/dc = alpha*s + delta*c;  projection: p.
template <class T>
struct RowTerms {
  T loss;
  T alpha;
  T beta;
  T gamma;
  T delta;
  T projection;
};

// The comparisons are written so that a NaN norm makes them true: the NaN then reaches the loss and
// every gradient of its row. A tie of the norms belongs to the student.
template <class T>
NDFAST_HOST_DEVICE RowTerms<T> row_terms(T student_norm, T teacher_norm, T centre_norm,
                                         T student_dot_centre, T eps) {
  const bool teacher_is_larger = teacher_norm > student_norm || teacher_norm != teacher_norm;
  T m = teacher_is_larger ? teacher_norm : student_norm;
  m = m < eps ? eps : m;
  const T n_c = centre_norm < eps ? eps : centre_norm;
  // Two divisions in all: each of a row's threads on a GPU does this, and a division is a sequence
  // of instructions there.
  const T by_m = reciprocal(m);
  const T by_n_c = reciprocal(n_c);

  RowTerms<T> row;
  row.projection = student_dot_centre * by_n_c;
  const T cosine_like = row.projection * by_m;  // p / m
  row.loss = T(1) - cosine_like;
  // NaN with the loss, so that the row is not taken for an ignored one, whose alpha and beta are 0.
  row.alpha = row.loss == row.loss ? -by_n_c * by_m : row.loss;
  // p / (m^2 n), where n, the larger norm, is m: else it has no part in the loss. Not by m^3, which
  // leaves float's range where m does not.
  const T shrink = cosine_like * by_m * by_m;
  row.beta = !(student_norm < teacher_norm) && !(student_norm <= eps) ? shrink : T(0);
  row.gamma = !(teacher_norm <= student_norm) && !(teacher_norm <= eps) ? shrink : T(0);
  row.delta = !(centre_norm <= eps) ? cosine_like * by_n_c * by_n_c : T(0);
  return row;
}

// What `ndfast.stats` takes the means of.
template <class T>
struct RowMeasures {
  T cosine;
  T norm_ratio;
  T longer;
};

template <class T>
NDFAST_HOST_DEVICE RowMeasures<T> row_measures(T student_norm, T teacher_norm, T projection,
                                               T eps) {
  const T n_s = student_norm < eps ? eps : student_norm;
  const T n_t = teacher_norm < eps ? eps : teacher_norm;
  const T ratio = student_norm / n_t;
  return {projection / n_s, ratio, ratio != ratio ? ratio : T(student_norm >= teacher_norm)};
}

}  // namespace ndfast
