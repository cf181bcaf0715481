// Errors for the sanitizers to find, compiled and linked as the library's own sources are.
#include <torch/csrc/stable/ops.h>

#include <limits>

#define NDFAST_EXPORT extern "C" __attribute__((visibility("default")))

NDFAST_EXPORT int64_t read_element(const int64_t* numbers, int64_t i) { return numbers[i]; }

NDFAST_EXPORT int64_t add_to_largest(const int64_t*, int64_t i) {
  return std::numeric_limits<int64_t>::max() + i;
}

NDFAST_EXPORT void count_threads(int64_t* numbers, int64_t apart) {
  torch::stable::parallel_for(0, 4, 1, [&](int64_t i, int64_t) { ++numbers[i * apart]; });
}
