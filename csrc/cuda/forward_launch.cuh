// How the forward's rows are spread over threads.
#pragma once

#include "alignment.cuh"
#include "forward_kernel.cuh"
#include "kernels.h"

namespace ndfast::cuda {

// Pieces of each vector that a thread holds. Every thread of a row does the row's own arithmetic,
// some 200 instructions, so a row has few threads, as long as their registers leave room for warps
// enough to have memory busy.
template <class S, class C, class Q, bool kMix>
inline constexpr int kHeldPieces = kWords<S, C, 4, Q, kMix> <= 96 ? 4 : 2;

// False, and nothing is launched, where rows are longer than registers hold and no kernel takes
// them in rounds: only what most trainings have is compiled for rows that are very short or very
// long.
template <class S, class C, class Q, bool kMix>
bool launch_forward(const ForwardArguments<float>& p, const Launch& launch) {
  constexpr int kPieces = kHeldPieces<S, C, Q, kMix>;
  constexpr bool is_usual = std::is_same_v<S, Q> && !kMix;
  const int pieces = p.D / kElements<S>;
  const auto on_lanes = [&](auto group, auto kernel) {
    using Group = decltype(group);
    launch_over_rows(launch, kernel, Group::kBlockThreads, p.N, Group::kBlockRows, p);
    return true;
  };
  if constexpr (is_usual) {
    if (pieces <= 8) {
      return on_lanes(LaneGroup<4>(), forward_kernel<float, S, C, 2, LaneGroup<4>, Q, kMix>);
    }
    if (pieces <= 16) {
      return on_lanes(LaneGroup<4>(), forward_kernel<float, S, C, 4, LaneGroup<4>, Q, kMix>);
    }
  }
  if (pieces <= 8 * kPieces) {
    return on_lanes(LaneGroup<8>(), forward_kernel<float, S, C, kPieces, LaneGroup<8>, Q, kMix>);
  }
  if (pieces <= 16 * kPieces) {
    return on_lanes(LaneGroup<16>(), forward_kernel<float, S, C, kPieces, LaneGroup<16>, Q, kMix>);
  }
  if (pieces <= 32 * kPieces) {
    return on_lanes(LaneGroup<32>(), forward_kernel<float, S, C, kPieces, LaneGroup<32>, Q, kMix>);
  }
  using Block = BlockGroup<float>;
  if (pieces <= kPieces * Block::max_threads(kWords<S, C, kPieces, Q, kMix>)) {
    const int threads = (pieces + kPieces * kWarp - 1) / (kPieces * kWarp) * kWarp;
    launch_over_rows(launch, forward_kernel<float, S, C, kPieces, Block, Q, kMix>, threads, p.N, 1,
                     p);
    return true;
  }
  if constexpr (is_usual) {
    launch_over_rows(launch, forward_loop_kernel<float, S, C, Q, kMix>, kLoop<S>.threads, p.N, 1,
                     p);
  }
  return is_usual;
}

// Beside a teacher of another type: under autocast a LayerNorm's features are float32, a pooled
// convolution's are not. Compiled for float32 class means alone.
template <class S, class Q>
bool forward_beside(const ForwardArguments<float>& p, const Launch& launch) {
  if (!is_in_pieces<S, Q>(p.teacher, p.D)) return false;
  return with_class_means<S>(p.centres, [&](auto* type, auto is_mixed) {
    using C = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<C, float>) {
      return launch_forward<S, C, Q, is_mixed.value>(p, launch);
    }
    return false;
  });
}

template <class S>
bool forward_rows(const ForwardArguments<float>& p, const Launch& launch) {
  if (!is_in_pieces<S>(p.student, p.D)) return false;
  if (is_in_pieces<S>(p.teacher, p.D)) {
    return with_class_means<S>(p.centres, [&](auto* type, auto is_mixed) {
      return launch_forward<S, std::remove_pointer_t<decltype(type)>, S, is_mixed.value>(p, launch);
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
