// Runs CUDA kernels on the CPU: as much of CUDA as csrc/cuda uses, found in place of the toolkit's
// header of this name. Every thread of a block is a fiber; at a barrier or a shuffle it hands over
// to the next one, and goes on when all have come to the same. Blocks run one after the other.
//
// Reads out of bounds are real here, so AddressSanitizer can see them; races between threads are
// not looked for.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// Blocks run one at a time, so a block's memory may be the program's.
#define __shared__ static
#define __CUDA_ARCH_LIST__ 800, 900

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct float2 {
  float x, y;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulator {

inline constexpr int kWarp = 32;

struct Thread {
  ucontext_t start;
  jmp_buf place;  // where it goes on; swapcontext would ask the kernel each time
  dim3 index;
  char waits_at = 0;  // a barrier or a shuffle; 0: it has not begun, or it is done
  std::vector<char> stack = std::vector<char>(64 << 10);
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  unsigned current = 0;
  jmp_buf scheduler;
  std::function<void()> body;
  // What lanes show each other; of two rounds, for a lane may be at the next before all have read.
  uint64_t shown[2][1024];
  std::vector<int> round;

  static Block& now() {
    static Block block;
    return block;
  }
  static void enter() {
    now().body();
    now().threads[now().current]->waits_at = 0;
    _longjmp(now().scheduler, 1);
  }
  // Hands over, and comes back when every other thread has come to such a place.
  void wait(char at) {
    Thread& thread = *threads[current];
    thread.waits_at = at;
    if (_setjmp(thread.place) == 0) _longjmp(scheduler, 1);
  }
  void go_on(unsigned i) {
    current = i;
    Thread& thread = *threads[i];
    threadIdx = thread.index;
    if (_setjmp(scheduler) != 0) return;
    if (thread.waits_at == 0) setcontext(&thread.start);
    _longjmp(thread.place, 1);
  }
};

// Whether the block came to a barrier or a shuffle.
inline bool run_block(const std::function<void()>& body) {
  Block& block = Block::now();
  const unsigned count = blockDim.x * blockDim.y;
  block.body = body;
  block.round.assign(count, 0);
  while (block.threads.size() < count) block.threads.push_back(std::make_unique<Thread>());
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = *block.threads[i];
    thread.index = dim3(i % blockDim.x, i / blockDim.x);
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.data();
    thread.start.uc_stack.ss_size = thread.stack.size();
    makecontext(&thread.start, Block::enter, 0);
  }
  bool waited = false;
  do {
    for (unsigned i = 0; i < count; ++i) {
      block.go_on(i);
      if (block.threads[i]->waits_at != block.threads[0]->waits_at) {
        std::fprintf(stderr, "emulator: thread %u is not where thread 0 waits\n", i);
        std::abort();
      }
    }
    waited = waited || block.threads[0]->waits_at != 0;
  } while (block.threads[0]->waits_at != 0);
  return waited;
}

}  // namespace emulator

inline void __syncthreads() { emulator::Block::now().wait('b'); }

namespace emulator {
template <class T>
T shuffle(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 8);
  if (mask != 0xffffffffu) std::abort();
  Block& block = Block::now();
  const unsigned me = block.current;
  uint64_t* shown = block.shown[block.round[me]++ % 2];
  std::memcpy(&shown[me], &value, sizeof(T));
  block.wait('s');
  std::memcpy(&value, &shown[from], sizeof(T));
  return value;
}
}  // namespace emulator

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  return emulator::shuffle(mask, value, emulator::Block::now().current ^ unsigned(offset));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width) {
  const unsigned me = emulator::Block::now().current;
  return emulator::shuffle(mask, value, me - me % width + lane % width);
}

inline unsigned atomicInc(unsigned* address, unsigned last) {
  const unsigned old = *address;
  *address = old >= last ? 0 : old + 1;
  return old;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorStreamCaptureUnsupported = 900
};
using cudaStream_t = struct Stream*;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulator {
inline unsigned long long capture_id = 0;
inline unsigned long long stream_id = 1;
inline cudaError_t next_launch_fails_by = cudaSuccess;
struct Launched {
  const void* kernel;
  int64_t at_work;  // blocks that came to a barrier; the others found nothing to do
};
inline std::vector<Launched> launched;
// Runs what nvcc made of a kernel in place of it, where it is set: name, blocks, threads, argument
// and its bytes. Returns the blocks at work; throws where the run finds a mistake.
inline std::function<int64_t(const void*, dim3, dim3, const void*, size_t)> run_compiled;
}  // namespace emulator

template <class Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument),
                               const Argument& argument) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  const unsigned threads = config->blockDim.x * config->blockDim.y;
  const auto error = std::exchange(emulator::next_launch_fails_by, cudaSuccess);
  if (error != cudaSuccess) return error;
  emulator::launched.push_back({reinterpret_cast<const void*>(kernel), 0});
  if (threads == 0 || threads > 1024 || threads % emulator::kWarp != 0)
    return cudaErrorInvalidValue;
  if (emulator::run_compiled) {
    emulator::launched.back().at_work = emulator::run_compiled(
        emulator::launched.back().kernel, gridDim, blockDim, &argument, sizeof(argument));
    return cudaSuccess;
  }
  for (unsigned y = 0; y < config->gridDim.y; ++y) {
    for (unsigned x = 0; x < config->gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      emulator::launched.back().at_work += emulator::run_block([&] { kernel(argument); });
    }
  }
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "error 1" : "error 900";
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 2;
  return cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int,
                                                                 size_t) {
  *blocks = 2;
  return cudaSuccess;
}
inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                            unsigned long long* id) {
  *status = emulator::capture_id ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  *id = emulator::capture_id;
  return cudaSuccess;
}
inline cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long* id) {
  if (emulator::capture_id) return cudaErrorStreamCaptureUnsupported;  // seen on an H200
  *id = emulator::stream_id;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t count, cudaStream_t) {
  std::memset(p, value, count);
  return cudaSuccess;
}
