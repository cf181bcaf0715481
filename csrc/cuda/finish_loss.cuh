// The end of a forward kernel: the rows' losses become one, in the same launch.
#pragma once

#include "arguments.h"
#include "groups.cuh"

namespace ndfast::cuda {

// Tickets of the kernels in one translation unit. They are 0 when the module is loaded on a device,
// and every launch leaves its own at 0: nothing is allocated, nothing has to be set, and a captured
// graph can be replayed. launch.cpp hands them out.
static __device__ unsigned tickets[kTickets];

// What each of a block's groups of threads has added up, its first lane alone. In shared memory,
// for it is needed once a row, and registers all the time; two arrays, for 16 bytes would be read
// and written in four neighbouring registers, which are not free in the middle of a row.
template <int kGroups>
struct GroupTotals {
  double loss[kGroups];
  double weight[kGroups];

  __device__ __forceinline__ void clear() {
    if (threadIdx.x < kGroups) loss[threadIdx.x] = weight[threadIdx.x] = 0;
    meet();
  }
  // Before another thread than the one that has written them reads or writes them. With one group
  // all of that is the first thread's.
  __device__ __forceinline__ static void meet() {
    if constexpr (kGroups > 1) __syncthreads();
  }
  __device__ __forceinline__ void add(int group, double loss_of_row, double weight_of_row) {
    loss[group] += loss_of_row;
    weight[group] += weight_of_row;
  }
};

// In the first thread, in an order that never changes.
__device__ inline LossSums sum_over_block(LossSums sums, int threads) {
  __shared__ LossSums of_warps[kMaxBlockThreads / kWarp];
  sums.loss = sum_over_lanes<kWarp>(sums.loss);
  sums.weight = sum_over_lanes<kWarp>(sums.weight);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = sums;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < threads / kWarp; ++warp) {
      sums.loss += of_warps[warp].loss;
      sums.weight += of_warps[warp].weight;
    }
  }
  return sums;
}

// The ticket's number, counted on to `last` and then back to 0. What this thread has stored is seen
// by all who take a later number, and the reverse: cheaper than __threadfence(), which also puts
// what others do in one order for all.
__device__ __forceinline__ unsigned take_number(unsigned* ticket, unsigned last) {
#ifdef __CUDA_ARCH__
  unsigned number;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(number)
               : "l"(ticket), "r"(last)
               : "memory");
  return number;
#else
  return atomicInc(ticket, last);
#endif
}

// A block's sums from L2, where other blocks' stores are seen; zeros, and nothing is read, where
// `valid` is off. With a predicate, as in read16(): behind branches each would be waited for.
__device__ __forceinline__ LossSums read_sums(const LossSums* p, bool valid) {
  LossSums sums{0, 0};
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n .reg .pred q;\n setp.ne.b32 q, %3, 0;\n @q ld.global.cg.v2.f64 {%0, %1}, [%2];\n}"
      : "+d"(sums.loss), "+d"(sums.weight)
      : "l"(p), "r"(int(valid))
      : "memory");
#else
  if (valid) sums = *p;
#endif
  return sums;
}

// Each block stores its sums; the one that comes last adds all of them up. Blocks are added in the
// order of their numbers, whichever comes last: bitwise the same from run to run.
template <class T, class Group>
__device__ inline void finish_loss(const ForwardArguments<T>& p, const Group& group,
                                   const GroupTotals<Group::kBlockRows>& totals) {
  if (p.reduction == kNone) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.scale = T(1);
    return;
  }
  __shared__ bool is_last;
  totals.meet();  // all groups have added theirs
  if (threadIdx.x == 0) {
    LossSums sums{totals.loss[0], totals.weight[0]};
#pragma unroll
    for (int row = 1; row < Group::kBlockRows; ++row) {
      sums.loss += totals.loss[row];
      sums.weight += totals.weight[row];
    }
    p.partials[blockIdx.x] = sums;
    unsigned* ticket = p.own_ticket ? p.own_ticket : &tickets[p.ticket];
    is_last = take_number(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  // On their way at once: one after the other they are as many round trips to L2.
  constexpr int kAtOnce = 8;
  LossSums sums{0, 0};
#pragma unroll 1
  for (unsigned begin = threadIdx.x; begin < gridDim.x; begin += kAtOnce * group.block_threads()) {
    LossSums of_blocks[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const unsigned block = begin + k * group.block_threads();
      of_blocks[k] = read_sums(&p.partials[block], block < gridDim.x);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      sums.loss += of_blocks[k].loss;
      sums.weight += of_blocks[k].weight;
    }
  }
  sums = sum_over_block(sums, group.block_threads());
  if (threadIdx.x == 0) {
    double scale = 1;
    if (p.reduction == kMean) scale = sums.weight == 0 ? 0 : double(p.N) / sums.weight;
    *p.scale = T(scale);
    *p.loss = T(sums.loss * p.factor * scale);
  }
}

}  // namespace ndfast::cuda
