// Where and how the kernels of a call run.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace ndfast::cuda {

// A stream of the current device.
struct Launch {
  int device;
  cudaStream_t stream;
};

// Throws where a call of the CUDA runtime failed; `what` it was for.
void check(cudaError_t error, const char* what);

int num_sms(int device);

// How many blocks to launch at most: as many as are resident at once, each takes further rows.
int64_t resident_blocks(const Launch& launch, const void* kernel, int threads);

// A ticket for a launch that reduces, which no other launch has that may run at the same time. A
// stream has one, for its launches run one after the other; a graph that is being captured has its
// own for each stream, for it may be replayed beside anything but itself: two of its instances
// share their memory anyway. -1 where all have been given out.
int32_t take_ticket(const Launch& launch);

// Over how many blocks to spread tasks, of which each takes one a round: as few as need no more
// rounds than `most` would, whose last round may be a few blocks' alone.
inline int64_t even_blocks(int64_t tasks, int64_t most) {
  const int64_t rounds = (tasks + most - 1) / most;
  return rounds <= 1 ? std::max<int64_t>(tasks, 1) : (tasks + rounds - 1) / rounds;
}

// Launches a kernel with a block for every `rows` of N rows, up to as many as are resident.
template <class Arguments>
void launch_over_rows(const Launch& launch, void (*kernel)(Arguments), dim3 threads, int64_t N,
                      int rows, const Arguments& arguments) {
  const auto* address = reinterpret_cast<const void*>(kernel);
  // None is resident where the GPU cannot run the kernel at all: the launch will say so.
  const int64_t most =
      std::max<int64_t>(resident_blocks(launch, address, threads.x * threads.y), 1);
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(even_blocks((N + rows - 1) / rows, most))};
  config.blockDim = threads;
  config.stream = launch.stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments), "launching a kernel");
}

}  // namespace ndfast::cuda
