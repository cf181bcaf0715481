// float16 as the emulator's compiler has it.
#pragma once

#include <cuda_runtime.h>

// A struct, as the toolkit has it: kernels' names are the same as nvcc's.
struct __half {
  _Float16 value;
};

inline float __half2float(__half half) { return float(half.value); }
inline __half __float2half_rn(float value) { return {_Float16(value)}; }
inline __half __ushort_as_half(unsigned short bits) {
  __half half;
  std::memcpy(&half, &bits, 2);
  return half;
}
inline unsigned short __half_as_ushort(__half half) {
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
