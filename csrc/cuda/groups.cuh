// The threads that share a row, and sums over them. All threads of a block take part in every sum.
#pragma once

#include "../row_math.h"
#include "arguments.h"

namespace ndfast::cuda {

inline constexpr int kWarp = 32;

template <int kThreads, class T>
__device__ __forceinline__ T sum_over_lanes(T value) {
#pragma unroll
  for (int offset = kThreads / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

template <int kThreads, class T>
__device__ __forceinline__ RowSums<T> sum_over_lanes(const RowSums<T>& sums) {
  // That of c last, for its loads come last: the first shuffle waits for all of them.
  RowSums<T> total;
  total.student_dot_centre = sum_over_lanes<kThreads>(sums.student_dot_centre);
  total.centre_squared = sum_over_lanes<kThreads>(sums.centre_squared);
  total.student_squared = sum_over_lanes<kThreads>(sums.student_squared);
  total.teacher_squared = sum_over_lanes<kThreads>(sums.teacher_squared);
  return total;
}

// A row on kThreads lanes of a warp, as many rows in a block as there is room for: no barrier.
template <int threads>
struct LaneGroup {
  static constexpr int kThreads = threads;
  static constexpr int kBlockThreads = 128;
  static constexpr int max_threads(int) { return kBlockThreads; }
  // 48, 64 or 80 registers a thread: as many warps as there can be without spilling.
  static constexpr int min_blocks(int words) { return words <= 20 ? 10 : words <= 32 ? 8 : 6; }

  __device__ __forceinline__ int size() const { return kThreads; }
  __device__ __forceinline__ int lane() const { return threadIdx.x % kThreads; }
  __device__ __forceinline__ int row() const { return threadIdx.x / kThreads; }
  __device__ __forceinline__ int rows() const { return blockDim.x / kThreads; }

  template <class T>
  __device__ __forceinline__ RowSums<T> sum(const RowSums<T>& sums) {
    return sum_over_lanes<kThreads>(sums);
  }
};

// A row on all threads of a block, whole warps: one barrier a row.
template <class T>
struct BlockGroup {
  // 64 or 80 registers a thread.
  static constexpr int max_threads(int words) { return words <= 32 ? kMaxBlockThreads : 384; }
  static constexpr int min_blocks(int) { return 2; }

  __device__ __forceinline__ int size() const { return blockDim.x; }
  __device__ __forceinline__ int lane() const { return threadIdx.x; }
  __device__ __forceinline__ int row() const { return 0; }
  __device__ __forceinline__ int rows() const { return 1; }

  __device__ __forceinline__ RowSums<T> sum(const RowSums<T>& sums) {
    // Two buffers in turn: a warp may be at the next row's while another still reads this one's.
    alignas(16) __shared__ RowSums<T> of_warps[2][kMaxBlockThreads / kWarp];
    turn_ ^= 1;
    RowSums<T>* buffer = of_warps[turn_];
    const RowSums<T> of_warp = sum_over_lanes<kWarp>(sums);
    if (threadIdx.x % kWarp == 0) buffer[threadIdx.x / kWarp] = of_warp;
    __syncthreads();
    RowSums<T> total = buffer[0];
#pragma unroll 4
    for (int warp = 1; warp < int(blockDim.x) / kWarp; ++warp) {
      total.student_squared += buffer[warp].student_squared;
      total.teacher_squared += buffer[warp].teacher_squared;
      total.centre_squared += buffer[warp].centre_squared;
      total.student_dot_centre += buffer[warp].student_dot_centre;
    }
    return total;
  }

 private:
  int turn_ = 0;
};

}  // namespace ndfast::cuda
