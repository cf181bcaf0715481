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
inline void stream_store(float* p, float __attribute__((vector_size(64))) v) {
  _mm512_stream_ps(p, v);
}
inline void stream_store(double* p, double __attribute__((vector_size(64))) v) {
  _mm512_stream_pd(p, v);
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
