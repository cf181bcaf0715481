// How the backward's rows are spread over threads.
#pragma once

#include "alignment.cuh"
#include "backward_kernel.cuh"
#include "kernels.h"

namespace ndfast::cuda {

// Two pieces of a vector a thread; where four of class means come with each, one.
template <class S, class C, bool kMix>
inline constexpr int kBackwardPieces = kMix && sizeof(C) > sizeof(S) ? 1 : 2;

// Threads x along a row, as many as its pieces ask for, y over rows.
inline dim3 backward_threads(int pieces, int pieces_of_thread) {
  unsigned x = 4;
  while (x < kBackwardThreads && x * pieces_of_thread < unsigned(pieces)) x *= 2;
  return {x, x < 128 ? 128 / x : 1};
}

template <class T, class S, class C, bool kMix>
void launch_backward(const BackwardArguments<T>& p, const Launch& launch) {
  constexpr int kPieces = kBackwardPieces<S, C, kMix>;
  const dim3 threads = backward_threads(p.D / kElements<S>, kPieces);
  launch_over_rows(launch, backward_kernel<T, S, C, kPieces, kMix>, threads, p.N, threads.y, p);
}

template <class T, class S, class C, bool kMix>
void launch_class_means(const ClassMeansArguments<T>& p, const Launch& launch) {
  const int64_t stretches = (p.rows.D / kElements<S> + kColumns - 1) / kColumns;
  const int64_t other_parts = std::max<int64_t>(p.num_parts - 1, 0);
  const int64_t blocks = (p.rows.centres.K + other_parts) * stretches;
  launch_kernel(launch, class_means_kernel<T, S, C, kMix>, blocks, {kColumns, kClassRows}, p);
}

template <class S>
bool backward_rows(const BackwardArguments<float>& p, const Launch& launch) {
  for (const Matrix& matrix : {p.student, p.teacher, p.grad_features}) {
    if (!is_in_pieces<S>(matrix, p.D)) return false;
  }
  return with_class_means<S>(p.centres, [&](auto* type, auto is_mixed) {
    launch_backward<float, S, std::remove_pointer_t<decltype(type)>, is_mixed.value>(p, launch);
    return true;
  });
}

template <class S>
bool class_means_rows(const ClassMeansArguments<float>& p, const Launch& launch) {
  if (!is_in_pieces<S>(p.rows.student, p.rows.D)) return false;
  return with_class_means<S>(p.rows.centres, [&](auto* type, auto is_mixed) {
    launch_class_means<float, S, std::remove_pointer_t<decltype(type)>, is_mixed.value>(p, launch);
    return true;
  });
}

template <class T>
void backward_plain(const BackwardArguments<T>& p, const Launch& launch) {
  const auto run = p.centres.target_b.data ? launch_backward<T, AnyType, AnyType, true>
                                           : launch_backward<T, AnyType, AnyType, false>;
  run(p, launch);
}

template <class T>
void class_means_plain(const ClassMeansArguments<T>& p, const Launch& launch) {
  const auto run = p.rows.centres.target_b.data ? launch_class_means<T, AnyType, AnyType, true>
                                                : launch_class_means<T, AnyType, AnyType, false>;
  run(p, launch);
}

template <class T>
void add_parts(const ClassMeansArguments<T>& p, const Launch& launch) {
  const int64_t stretches = (p.rows.D + kAddedColumns - 1) / kAddedColumns;
  const int64_t blocks = p.num_parts / 2 * stretches;
  launch_kernel(launch, add_parts_kernel<T>, blocks, {kColumns, kClassRows}, p);
}

}  // namespace ndfast::cuda
