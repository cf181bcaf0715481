// Passes over one row, for each instruction set that this processor may have. Raw pointers, unit
// stride; no allocation, no checks.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "../dtype.h"
#include "../row_math.h"

namespace ndfast::cpu {

// A row in memory, in whatever type it has there.
struct ConstRow {
  const void* data;
  Dtype dtype;
};
struct Row {
  void* data;
  Dtype dtype;
};

// T is the type of the sums, float or double. A student is float64 exactly where T is double. A
// centre has the type of the sums or the student's.

// x*centre + y*student, to be written to `out`. `stream` writes past the caches, for outputs larger
// than they are. `addend`, where not null, is added before the sum is rounded; it and `out` then
// have the student's type.
template <class T>
struct Combination {
  Row out;
  ConstRow centre;
  ConstRow student;
  T x;
  T y;
  bool stream;
  const void* addend = nullptr;
};

// What a row's sums are taken of; `teacher.data` may be null.
template <class T>
struct Vectors {
  ConstRow student;
  ConstRow teacher;
  ConstRow centre;
};

// Vectors of later rows, which are asked for meanwhile; not where `student` is null.
struct VectorsAhead {
  const void* student = nullptr;
  const void* teacher = nullptr;
  const void* centre = nullptr;
};

template <class T>
struct RowKernels {
  // The sums over s, t and c. Where there are vectors ahead, `meanwhile`, if it has an `out`, is an
  // earlier row's gradient and streamed beside: written by itself it would leave the memory's
  // reading side idle. Its `out` has the student's type, its student and centre have those of this
  // row.
  RowSums<T> (*sums)(const Vectors<T>& row, const VectorsAhead& ahead,
                     const Combination<T>& meanwhile, int64_t D);
  void (*combine)(const Combination<T>& combination, int64_t D);
  // out += x*centre + y*student.
  void (*accumulate)(T* out, ConstRow centre, ConstRow student, T x, T y, int64_t D);
  // out = x*row; also converts, with x = 1.
  void (*scale)(Row out, ConstRow row, T x, int64_t D);
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
