// How the backward's rows are spread over threads.
#pragma once

#include "alignment.cuh"
#include "backward_kernel.cuh"
#include "kernels.h"

namespace ndfast::cuda {

// Two pieces of a vector a thread; where four of class means come with each, one.
template <class S, class C, bool kMix>
inline constexpr int kBackwardPieces = kMix && sizeof(C) > sizeof(S) ? 1 : 2;

// Threads x along a row, as many as its pieces ask for, y over rows; x is a power of two or half as
// many more, so that at least two thirds of the threads have pieces.
inline dim3 backward_threads(int pieces, int pieces_of_thread) {
  const auto are_enough = [&](unsigned x) { return x * pieces_of_thread >= unsigned(pieces); };
  unsigned x = 4, block = 128;
  while (x < kBackwardThreads && !are_enough(x)) x *= 2;
  if (x >= 16 && are_enough(x / 4 * 3)) {
    x = x / 4 * 3;
    block = 96;
  }
  return {x, std::max(block / x, 1u)};
}

template <class T, class S, class C, bool kMix>
void launch_backward(const BackwardArguments<T>& p, const Launch& launch) {
  constexpr int kPieces = kBackwardPieces<S, C, kMix>;
  const dim3 threads = backward_threads(p.D / kElements<S>, kPieces);
  launch_over_rows(launch, backward_kernel<T, S, C, kPieces, kMix>, threads, p.N, threads.y, p);
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

template <class T>
void backward_plain(const BackwardArguments<T>& p, const Launch& launch) {
  const auto run = p.centres.target_b.data ? launch_backward<T, AnyType, AnyType, true>
                                           : launch_backward<T, AnyType, AnyType, false>;
  run(p, launch);
}

}  // namespace ndfast::cuda
