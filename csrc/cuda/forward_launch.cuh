// How the forward's rows are spread over threads.
#pragma once

#include "alignment.cuh"
#include "forward_kernel.cuh"
#include "kernels.h"

namespace ndfast::cuda {

template <class S, class C, class Q, bool kMix>
void launch_forward(const ForwardArguments<float>& p, const Launch& launch) {
  const int pieces = p.D / kElements<S>;
  const auto on_lanes = [&](auto group, auto kernel) {
    using Group = decltype(group);
    launch_over_rows(launch, kernel, Group::kBlockThreads, p.N, Group::kBlockRows, p);
  };
  // One or two pieces a thread and vector. More would cost the registers of further warps, which
  // have as many loads on their way.
  if (pieces <= 8) {
    on_lanes(LaneGroup<8>(), forward_kernel<float, S, C, 1, LaneGroup<8>, Q, kMix>);
  } else if (pieces <= 16) {
    on_lanes(LaneGroup<16>(), forward_kernel<float, S, C, 1, LaneGroup<16>, Q, kMix>);
  } else if (pieces <= 32) {
    on_lanes(LaneGroup<32>(), forward_kernel<float, S, C, 1, LaneGroup<32>, Q, kMix>);
  } else if (pieces <= 64) {
    on_lanes(LaneGroup<32>(), forward_kernel<float, S, C, 2, LaneGroup<32>, Q, kMix>);
  } else if (pieces <= 2 * BlockGroup<float>::max_threads(kWords<S, C, 2, Q, kMix>)) {
    const int threads = (pieces + 2 * kWarp - 1) / (2 * kWarp) * kWarp;
    const auto kernel = forward_kernel<float, S, C, 2, BlockGroup<float>, Q, kMix>;
    launch_over_rows(launch, kernel, threads, p.N, 1, p);
  } else {
    launch_over_rows(launch, forward_loop_kernel<float, S, C, Q, kMix>, kLoop<S>.threads, p.N, 1,
                     p);
  }
}

template <class S, class C, class Q>
void launch_forward(const ForwardArguments<float>& p, const Launch& launch) {
  const auto run =
      p.centres.target_b.data ? launch_forward<S, C, Q, true> : launch_forward<S, C, Q, false>;
  run(p, launch);
}

// Beside a teacher of another type: under autocast a LayerNorm's features are float32, a pooled
// convolution's are not. Compiled for float32 class means alone.
template <class S, class Q>
bool forward_beside(const ForwardArguments<float>& p, const Launch& launch) {
  if (!is_in_pieces<S, float>(p.centres.class_means, p.D)) return false;
  if (!is_in_pieces<S, Q>(p.teacher, p.D)) return false;
  launch_forward<S, float, Q>(p, launch);
  return true;
}

template <class S>
bool forward_rows(const ForwardArguments<float>& p, const Launch& launch) {
  if (!is_in_pieces<S>(p.student, p.D)) return false;
  if (is_in_pieces<S>(p.teacher, p.D)) {
    return with_class_mean_type<S>(p.centres.class_means, [&](auto* type) {
      launch_forward<S, std::remove_pointer_t<decltype(type)>, S>(p, launch);
    });
  }
  if constexpr (sizeof(S) == 2) {
    return forward_beside<S, float>(p, launch);
  } else {
    return forward_beside<S, __nv_bfloat16>(p, launch) || forward_beside<S, __half>(p, launch);
  }
}

template <class T>
void forward_plain(const ForwardArguments<T>& p, const Launch& launch) {
  const auto kernel = p.centres.target_b.data
                          ? forward_loop_kernel<T, AnyType, AnyType, AnyType, true>
                          : forward_loop_kernel<T, AnyType, AnyType, AnyType, false>;
  const int threads = p.D <= 128 ? 64 : kLoop<AnyType>.threads;
  launch_over_rows(launch, kernel, threads, p.N, 1, p);
}

}  // namespace ndfast::cuda
