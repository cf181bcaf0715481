// The end of a forward kernel: the rows' losses become one, in the same launch.
#pragma once

#include "arguments.h"
#include "groups.cuh"

namespace ndfast::cuda {

// Tickets of the kernels in one translation unit. They are 0 when the module is loaded on a device,
// and every launch leaves its own at 0: nothing is allocated, nothing has to be set, and a captured
// graph can be replayed. launch.cpp hands them out.
static __device__ unsigned tickets[kTickets];

struct LossSums {
  double loss;
  double weight;
};

// What a group of threads has added up, its first lane alone. In shared memory, for it is needed
// once a row, and registers all the time.
struct GroupTotals {
  LossSums of_groups[kMaxBlockRows];

  __device__ __forceinline__ void clear() {
    if (threadIdx.x < kMaxBlockRows) of_groups[threadIdx.x] = {0, 0};
    __syncthreads();
  }
  __device__ __forceinline__ void add(int group, double loss, double weight) {
    of_groups[group].loss += loss;
    of_groups[group].weight += weight;
  }
};

// In the first thread, in an order that never changes.
__device__ inline LossSums sum_over_block(LossSums sums) {
  __shared__ LossSums of_warps[kMaxBlockThreads / kWarp];
  sums.loss = sum_over_lanes<kWarp>(sums.loss);
  sums.weight = sum_over_lanes<kWarp>(sums.weight);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = sums;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) {
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

// Each block stores its sums; the one that comes last adds all of them up. Blocks are added in the
// order of their numbers, whichever comes last: bitwise the same from run to run.
template <class T>
__device__ inline void finish_loss(const ForwardArguments<T>& p, const GroupTotals& totals) {
  if (p.reduction == kNone) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.scale = T(1);
    return;
  }
  __shared__ bool is_last;
  __syncthreads();  // all groups have added theirs
  if (threadIdx.x == 0) {
    LossSums sums = totals.of_groups[0];
    for (int group = 1; group < kMaxBlockRows; ++group) {
      sums.loss += totals.of_groups[group].loss;
      sums.weight += totals.of_groups[group].weight;
    }
    p.partials[blockIdx.x] = sums.loss;
    p.partials[gridDim.x + blockIdx.x] = sums.weight;
    unsigned* ticket = p.own_ticket ? p.own_ticket : &tickets[p.ticket];
    is_last = take_number(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  LossSums sums{0, 0};
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    sums.loss += __ldcg(&p.partials[block]);
    sums.weight += __ldcg(&p.partials[gridDim.x + block]);
  }
  sums = sum_over_block(sums);
  if (threadIdx.x == 0) {
    double scale = 1;
    if (p.reduction == kMean) scale = sums.weight == 0 ? 0 : double(p.N) / sums.weight;
    *p.scale = T(scale);
    *p.loss = T(sums.loss * p.factor * scale);
  }
}

}  // namespace ndfast::cuda
