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
#include "row_kernels_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
