// float16 as the emulator's compiler has it.
#pragma once

#include <cuda_runtime.h>

using __half = _Float16;

inline float __half2float(__half value) { return float(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  std::memcpy(&value, &bits, 2);
  return value;
}
inline unsigned short __half_as_ushort(__half value) {
  unsigned short bits;
  std::memcpy(&bits, &value, 2);
  return bits;
}
