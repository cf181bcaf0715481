// Pieces of rows: neighbouring elements that one thread reads and writes at once, 16 bytes of the
// student's row wherever its alignment allows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "arguments.h"

namespace ndfast::cuda {

// An element type that is known only at run time: the plain path, for rows that are misaligned or
// not in whole pieces, and for types that no kernel is compiled for together.
struct AnyType {};

// How many elements of the student's row a piece holds.
template <class S>
inline constexpr int kElements = 16 / sizeof(S);
template <>
inline constexpr int kElements<AnyType> = 1;

// The offset as it is. The compiler would else work out each address of a row anew, from the row's
// number on: three instructions for every piece, where a constant beside one address is none.
__device__ __forceinline__ int64_t once(int64_t offset) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(offset));
#endif
  return offset;
}

// Where a row begins, `offset` bytes on.
__device__ __forceinline__ char* row_of(const Matrix& matrix, int64_t row, int64_t offset = 0) {
  return matrix.data + once(row * matrix.row_bytes + offset);
}

template <int kBytes>
struct Raw {
  static_assert(kBytes % 4 == 0, "made of words");
  static constexpr int kWords = kBytes / 4;
  uint32_t words[kWords] = {};
};

// What is read once is not kept in L1: class means are, and each serves many rows of a batch.
enum class Keep { kNothing, kInL1 };

// Reads into the words, or leaves them as they are where `valid` is off: nothing is read there.
// Written out so that ptxas gets a predicate, not a branch, and all reads of a row are on their way
// before one is waited for.
template <Keep keep>
__device__ __forceinline__ void read16(uint32_t* words, const char* p, bool valid) {
#ifdef __CUDA_ARCH__
  if constexpr (keep == Keep::kInL1) {
    asm volatile(
        "{\n .reg .pred q;\n setp.ne.b32 q, %5, 0;\n"
        " @q ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
        : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
        : "l"(p), "r"(int(valid)));
  } else {
    asm volatile(
        "{\n .reg .pred q;\n setp.ne.b32 q, %5, 0;\n"
        " @q ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
        : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
        : "l"(p), "r"(int(valid)));
  }
#else
  if (valid) std::memcpy(words, p, 16);
#endif
}

// The same for half precision beside a float32 student: of a teacher.
template <Keep keep>
__device__ __forceinline__ void read8(uint32_t* words, const char* p, bool valid) {
  static_assert(keep == Keep::kNothing, "class means are never narrower than the student");
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n .reg .pred q;\n setp.ne.b32 q, %3, 0;\n"
      " @q ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];\n}"
      : "+r"(words[0]), "+r"(words[1])
      : "l"(p), "r"(int(valid)));
#else
  if (valid) std::memcpy(words, p, 8);
#endif
}

template <Keep keep, int kBytes>
__device__ __forceinline__ void read(Raw<kBytes>& raw, const char* p, bool valid) {
  if constexpr (kBytes == 8) {
    read8<keep>(raw.words, p, valid);
  } else {
    static_assert(kBytes % 16 == 0, "8, 16 or 32 bytes");
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) read16<keep>(raw.words + 4 * i, p + 16 * i, valid);
  }
}

template <int kBytes>
__device__ __forceinline__ void write(char* p, const Raw<kBytes>& raw) {
  if constexpr (kBytes == 8) {
    *reinterpret_cast<uint2*>(p) = {raw.words[0], raw.words[1]};
  } else {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      *reinterpret_cast<uint4*>(p + 16 * i) = {raw.words[4 * i], raw.words[4 * i + 1],
                                               raw.words[4 * i + 2], raw.words[4 * i + 3]};
    }
  }
}

__device__ __forceinline__ float2 widen(uint32_t two, __nv_bfloat16) {
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000)};
}
__device__ __forceinline__ float2 widen(uint32_t two, __half) {
  return {__half2float(__ushort_as_half(static_cast<unsigned short>(two & 0xffff))),
          __half2float(__ushort_as_half(static_cast<unsigned short>(two >> 16)))};
}
// Both at once, one instruction: one by one they are two conversions and a packing.
__device__ __forceinline__ uint32_t narrow(float low, float high, __nv_bfloat16) {
#ifdef __CUDA_ARCH__
  uint32_t two;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  return two;
#else
  return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
         uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
#endif
}
__device__ __forceinline__ uint32_t narrow(float low, float high, __half) {
#ifdef __CUDA_ARCH__
  uint32_t two;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  return two;
#else
  return __half_as_ushort(__float2half_rn(low)) | uint32_t(__half_as_ushort(__float2half_rn(high)))
                                                      << 16;
#endif
}

// n elements of type S, as they lie in memory: half of the registers that floats would take.
template <class T, class S, int n>
class Piece {
 public:
  static constexpr int kBytes = n * sizeof(S);

  // Keeps what it holds, zeros at first, where `valid` is off.
  template <Keep keep = Keep::kNothing>
  __device__ __forceinline__ void load(const char* p, bool valid) {
    read<keep>(raw_, p, valid);
  }
  template <Keep keep = Keep::kNothing>
  __device__ __forceinline__ void load(const Matrix& matrix, int64_t row, int col, bool valid) {
    load<keep>(row_of(matrix, row) + col * int64_t(kBytes), valid);
  }

  __device__ __forceinline__ void store(char* p) const { write(p, raw_); }
  __device__ __forceinline__ void store(const Matrix& matrix, int64_t row, int col) const {
    store(row_of(matrix, row) + col * int64_t(kBytes));
  }

  __device__ __forceinline__ T operator[](int i) const {
    if constexpr (sizeof(S) == 4) {
      return __uint_as_float(raw_.words[i]);
    } else {
      const float2 two = widen(raw_.words[i / 2], S());
      return i % 2 ? two.y : two.x;
    }
  }

  // Sets every element, f(i) for the i-th.
  template <class F>
  __device__ __forceinline__ void fill(const F& f) {
    if constexpr (sizeof(S) == 4) {
#pragma unroll
      for (int i = 0; i < n; ++i) raw_.words[i] = __float_as_uint(f(i));
    } else {
#pragma unroll
      for (int i = 0; i < n; i += 2) raw_.words[i / 2] = narrow(f(i), f(i + 1), S());
    }
  }

 private:
  Raw<kBytes> raw_;
};

// An element of half precision as it lies in memory, for to convert is to wait for it; another as
// T.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

__device__ __forceinline__ uint32_t bits_of(float value) { return __float_as_uint(value); }
__device__ __forceinline__ uint64_t bits_of(double value) {
  return static_cast<uint64_t>(__double_as_longlong(value));
}

template <class T>
__device__ __forceinline__ Bits<T> load_bits(const void* data, int64_t i, Dtype dtype) {
  switch (dtype) {
    case Dtype::float16:
    case Dtype::bfloat16: return static_cast<const uint16_t*>(data)[i];
    case Dtype::float64: return bits_of(T(static_cast<const double*>(data)[i]));
    case Dtype::float32: break;
  }
  return bits_of(T(static_cast<const float*>(data)[i]));
}

template <class T>
__device__ __forceinline__ T value_of(Bits<T> bits, Dtype dtype) {
  const auto half = static_cast<unsigned short>(bits);
  if (dtype == Dtype::float16) return T(__half2float(__ushort_as_half(half)));
  if (dtype == Dtype::bfloat16) return T(__uint_as_float(uint32_t(half) << 16));
  if constexpr (sizeof(T) == 8) {
    return __longlong_as_double(static_cast<long long>(bits));
  } else {
    return __uint_as_float(bits);
  }
}

template <class T>
__device__ __forceinline__ T load_element(const void* data, int64_t i, Dtype dtype) {
  return value_of<T>(load_bits<T>(data, i, dtype), dtype);
}

template <class T>
__device__ __forceinline__ void store_element(void* data, int64_t i, Dtype dtype, T value) {
  switch (dtype) {
    case Dtype::float16: static_cast<__half*>(data)[i] = __float2half_rn(float(value)); return;
    case Dtype::bfloat16:
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(float(value));
      return;
    case Dtype::float64: static_cast<double*>(data)[i] = double(value); return;
    case Dtype::float32: break;
  }
  static_cast<float*>(data)[i] = float(value);
}

// One element of any type, as it lies in memory: converted at once, it would have to be waited for
// before the next is asked for.
template <class T>
class Piece<T, AnyType, 1> {
 public:
  template <Keep keep = Keep::kNothing>
  __device__ __forceinline__ void load(const Matrix& matrix, int64_t row, int col, bool valid) {
    dtype_ = matrix.dtype;
    bits_ = valid ? load_bits<T>(row_of(matrix, row), col, dtype_) : 0;
  }
  __device__ __forceinline__ T operator[](int) const { return value_of<T>(bits_, dtype_); }

  template <class F>
  __device__ __forceinline__ void fill(const F& f) {
    value_ = f(0);
  }
  __device__ __forceinline__ void store(const Matrix& matrix, int64_t row, int col) const {
    store_element<T>(row_of(matrix, row), col, matrix.dtype, value_);
  }

 private:
  Bits<T> bits_;  // that were read
  Dtype dtype_;   // theirs
  T value_;       // to be written
};

// The i-th value, or what an absent one stands for.
template <class T>
__device__ __forceinline__ T value_or(const Values& values, int64_t i, T absent) {
  return values.data ? load_element<T>(values.data, i * values.stride, values.dtype) : absent;
}

}  // namespace ndfast::cuda
