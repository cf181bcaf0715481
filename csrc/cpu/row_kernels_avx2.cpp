// The row passes for x86-64 with AVX2. Called only where the processor has it (capability.cpp).
#ifdef __x86_64__
#include <immintrin.h>

#include "row_kernels.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma")
#endif

namespace {
inline void stream_store(void* p, uint32_t __attribute__((vector_size(32))) v) {
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
}
inline void stream_store(void* p, uint32_t __attribute__((vector_size(16))) v) {
  _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
}
}  // namespace

#define NDFAST_ISA avx2
#define NDFAST_BYTES 32
#define NDFAST_STREAM stream_store
#include "vectors.h"

namespace ndfast::cpu::NDFAST_ISA {
namespace {
template <>
inline Vec<uint32_t, 8> zero_extend<8>(Vec<uint16_t, 8> half) {
  return (Vec<uint32_t, 8>)_mm256_cvtepu16_epi32((__m128i)half);
}
template <>
inline Vec<float, 8> widen<8>(Vec<uint16_t, 8> half, float16) {
  return (Vec<float, 8>)_mm256_cvtph_ps((__m128i)half);
}
template <>
inline Vec<uint16_t, 8> narrow<8>(Vec<float, 8> value, float16) {
  return (Vec<uint16_t, 8>)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
}
}  // namespace
}  // namespace ndfast::cpu::NDFAST_ISA

#include "row_kernels_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
