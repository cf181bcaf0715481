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

// Which of a row's sums a lane brings to its end; lanes in turn.
enum Sum { kStudentSquared, kTeacherSquared, kCentreSquared, kStudentDotCentre };

// A row's four sums over kThreads lanes, one of them on each lane: its `Sum` is lane % 4. A lane
// that gives two of four away and then one of two has less to shuffle than with all four to the
// end: 6 shuffles over a warp, not 20. Every sum is added in the same order.
template <int kThreads, class T>
__device__ __forceinline__ T sum_of_lane(const RowSums<T>& sums) {
  const auto swap = [](bool second, T first_sum, T second_sum, int offset) {
    const T kept = second ? second_sum : first_sum, given = second ? first_sum : second_sum;
    return kept + __shfl_xor_sync(0xffffffffu, given, offset);
  };
  const bool has_centre = threadIdx.x & 2, is_odd = threadIdx.x & 1;
  const T even = swap(has_centre, sums.student_squared, sums.centre_squared, 2);
  const T odd = swap(has_centre, sums.teacher_squared, sums.student_dot_centre, 2);
  T sum = swap(is_odd, even, odd, 1);
#pragma unroll
  for (int offset = 4; offset < kThreads; offset *= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  }
  return sum;
}

// A row on kThreads lanes of a warp, as many rows in a block as there is room for: no barrier.
template <int threads>
struct LaneGroup {
  static constexpr int kThreads = threads;
  static constexpr int kBlockThreads = 128;
  static constexpr int kBlockRows = kBlockThreads / kThreads;
  static constexpr int max_threads(int) { return kBlockThreads; }
  // 64, 80, 96 or 128 registers a thread: as many warps as there can be without spilling.
  static constexpr int min_blocks(int words) {
    return words <= 38 ? 8 : words <= 58 ? 6 : words <= 72 ? 5 : 4;
  }

  __device__ __forceinline__ int block_threads() const { return kBlockThreads; }
  __device__ __forceinline__ int size() const { return kThreads; }
  __device__ __forceinline__ int lane() const { return threadIdx.x % kThreads; }
  __device__ __forceinline__ int row() const { return threadIdx.x / kThreads; }
  // Not kBlockRows: with the step of the loop over rows known to it, ptxas spills for sm_100.
  __device__ __forceinline__ int rows() const { return blockDim.x / kThreads; }

  template <class T>
  __device__ __forceinline__ RowSums<T> sum(const RowSums<T>& sums) {
    const T own = sum_of_lane<kThreads>(sums);
    const auto of = [&](Sum sum) { return __shfl_sync(0xffffffffu, own, sum, 4); };
    return {of(kStudentSquared), of(kTeacherSquared), of(kCentreSquared), of(kStudentDotCentre)};
  }
};

// A row on all threads of a block, whole warps: one barrier a row.
template <class T>
struct BlockGroup {
  static constexpr int kBlockRows = 1;
  // 80, 96 or 128 registers a thread.
  static constexpr int max_threads(int words) {
    return words <= 58 ? 384 : words <= 72 ? 320 : 256;
  }
  static constexpr int min_blocks(int) { return 2; }

  __device__ __forceinline__ int block_threads() const { return blockDim.x; }
  __device__ __forceinline__ int size() const { return blockDim.x; }
  __device__ __forceinline__ int lane() const { return threadIdx.x; }
  __device__ __forceinline__ int row() const { return 0; }
  __device__ __forceinline__ int rows() const { return 1; }

  __device__ __forceinline__ RowSums<T> sum(const RowSums<T>& sums) {
    // Two buffers in turn: a warp may be at the next row's while another still reads this one's.
    alignas(16) __shared__ T of_warps[2][kMaxBlockThreads / kWarp][4];
    turn_ ^= 1;
    auto* buffer = of_warps[turn_];
    const T of_warp = sum_of_lane<kWarp>(sums);
    if (threadIdx.x % kWarp < 4) buffer[threadIdx.x / kWarp][threadIdx.x % kWarp] = of_warp;
    __syncthreads();
    RowSums<T> total{0, 0, 0, 0};
#pragma unroll 4
    for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) {
      total.student_squared += buffer[warp][kStudentSquared];
      total.teacher_squared += buffer[warp][kTeacherSquared];
      total.centre_squared += buffer[warp][kCentreSquared];
      total.student_dot_centre += buffer[warp][kStudentDotCentre];
    }
    return total;
  }

 private:
  int turn_ = 0;
};

}  // namespace ndfast::cuda
