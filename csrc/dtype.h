// Floating-point types and reductions as every compiled backend names them.
#pragma once

#include <cstdint>

namespace ndfast {

enum class Dtype : int32_t { float16, bfloat16, float32, float64 };

// As in ndfast/backends/reference.py.
enum Reduction : int32_t { kNone = 0, kMean = 1, kSum = 2 };

}  // namespace ndfast
