// Passes over one row, for each instruction set that this processor may have. Raw pointers, unit
// stride; no allocation, no checks.
#pragma once

#include <cstdint>
#include <string>

#include "../row_math.h"

namespace ndfast::cpu {

enum class Dtype { float16, bfloat16, float32, float64 };

// T is the type of the sums, float or double.
template <class T>
struct RowKernels {
  // Sums over s, t and c; `teacher` may be null.
  RowSums<T> (*sums)(const T* student, const T* teacher, const T* centre, int64_t D);
  // out = x*a + y*b. `stream` writes past the caches: for outputs larger than they are.
  void (*combine)(T* out, const T* a, const T* b, T x, T y, int64_t D, bool stream);
  // out += x*a + y*b.
  void (*accumulate)(T* out, const T* a, const T* b, T x, T y, int64_t D);
  // out = x*a; in place where out is a.
  void (*scale)(T* out, const T* a, T x, int64_t D);
  // From and to a row of another dtype.
  void (*load)(T* out, const void* row, Dtype dtype, int64_t D);
  void (*store)(void* row, Dtype dtype, const T* values, int64_t D);
  // Makes streamed writes visible before the thread reports its rows as done.
  void (*fence)();
};

// Each is compiled for its instruction set; only `row_kernels` may call the two upper ones.
namespace portable {
template <class T>
const RowKernels<T>& kernels();
}
namespace avx2 {
template <class T>
const RowKernels<T>& kernels();
}
namespace avx512 {
template <class T>
const RowKernels<T>& kernels();
}

// The kernels of the current capability.
template <class T>
const RowKernels<T>& row_kernels();

// "avx512", "avx2" or "portable": the one in use, at first the highest that the processor has.
std::string capability();
// Uses a lower one (or the highest again). False where the processor or the build lacks it.
bool set_capability(const std::string& name);

}  // namespace ndfast::cpu
