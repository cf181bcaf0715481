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
inline Vec<uint32_t, 16> zero_extend<16>(Vec<uint16_t, 16> half) {
  return (Vec<uint32_t, 16>)_mm512_maskz_cvtepu16_epi32(kAll, (__m256i)half);
}
template <>
inline Vec<uint16_t, 16> narrow<16>(Vec<float, 16> value, bfloat16) {
  // A NaN is not rounded, which would turn some into zeros: as the result of arithmetic it is
  // quiet, so that its upper half is a NaN.
  const __m512i bits = (__m512i)value;
  const __mmask16 is_number = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_ORD_Q);
  const __mmask16 is_odd = _mm512_mask_test_epi32_mask(is_number, bits, _mm512_set1_epi32(0x10000));
  const __m512i up = _mm512_mask_add_epi32(bits, is_number, bits, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_mask_add_epi32(up, is_odd, up, _mm512_set1_epi32(1));
  const __m512i upper_halves = _mm512_set_epi32(  // of 16 numbers, two an element
      0, 0, 0, 0, 0, 0, 0, 0, 0x1f001d, 0x1b0019, 0x170015, 0x130011, 0xf000d, 0xb0009, 0x70005,
      0x30001);
  const __m512i both = _mm512_maskz_permutexvar_epi16(kAll, upper_halves, rounded);
  Vec<uint16_t, 16> narrowed;
  __builtin_memcpy(&narrowed, &both, sizeof(narrowed));
  return narrowed;
}
template <>
inline Vec<float, 16> widen<16>(Vec<uint16_t, 16> half, float16) {
  return (Vec<float, 16>)_mm512_maskz_cvtph_ps(kAll, (__m256i)half);
}
template <>
inline Vec<uint16_t, 16> narrow<16>(Vec<float, 16> value, float16) {
  return (Vec<uint16_t, 16>)_mm512_maskz_cvtps_ph(kAll, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
}

inline __mmask16 first(int64_t count) { return __mmask16((1u << count) - 1); }

template <>
inline Vec<float, 16> load_lanes(const void* p, int64_t count) {
  return (Vec<float, 16>)_mm512_maskz_loadu_ps(first(count), p);
}
template <>
inline void store_lanes(void* p, Vec<float, 16> row, int64_t count) {
  _mm512_mask_storeu_ps(p, first(count), (__m512)row);
}
template <>
inline Vec<uint16_t, 16> load_lanes(const void* p, int64_t count) {
  return (Vec<uint16_t, 16>)_mm256_maskz_loadu_epi16(first(count), p);
}
template <>
inline void store_lanes(void* p, Vec<uint16_t, 16> row, int64_t count) {
  _mm256_mask_storeu_epi16(p, first(count), (__m256i)row);
}
}  // namespace
}  // namespace ndfast::cpu::NDFAST_ISA

#include "row_kernels_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
