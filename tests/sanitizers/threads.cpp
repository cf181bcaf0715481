// PyTorch's parallel_for on threads of our own, for ThreadSanitizer: it does not see how OpenMP's
// threads wait for each other, and would call every hand-over a race. Linked into the library, this
// is found before PyTorch's. Four threads even for four rows, which PyTorch would give to one.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <thread>
#include <vector>

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc f,
                                             void* context) {
  constexpr int64_t kThreads = 4;
  const int64_t rows = std::max<int64_t>(1, (end - begin + kThreads - 1) / kThreads);
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; i += rows) {
    threads.emplace_back(f, i, std::min(i + rows, end), context);
  }
  for (std::thread& thread : threads) thread.join();
  return AOTI_TORCH_SUCCESS;
}
