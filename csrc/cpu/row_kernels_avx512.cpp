// The row passes for x86-64 with AVX-512. Called only where the processor has it (capability.cpp).
#ifdef __x86_64__
#include <immintrin.h>

#include "row_kernels.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif

namespace {
inline void stream_store(void* p, uint32_t __attribute__((vector_size(64))) v) {
  _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
}
inline void stream_store(void* p, uint32_t __attribute__((vector_size(32))) v) {
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
}
}  // namespace

#define NDFAST_ISA avx512
#define NDFAST_BYTES 64
#define NDFAST_STREAM stream_store
#include "vectors.h"

namespace ndfast::cpu::NDFAST_ISA {
namespace {
// The plain forms make GCC 12 warn of a variable of its own header.
constexpr __mmask16 kAll = 0xffff;

template <>
inline Vec<float, 16> widen<16>(Vec<uint16_t, 16> half, float16) {
  return (Vec<float, 16>)_mm512_maskz_cvtph_ps(kAll, (__m256i)half);
}
template <>
inline Vec<uint16_t, 16> narrow<16>(Vec<float, 16> value, float16) {
  return (Vec<uint16_t, 16>)_mm512_maskz_cvtps_ph(kAll, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
}
}  // namespace
}  // namespace ndfast::cpu::NDFAST_ISA

#include "row_kernels_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
