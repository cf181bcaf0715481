// The row passes for any processor: SSE2 on x86-64, NEON on aarch64, by the compiler's default.
#include "row_kernels.h"

#define NDFAST_ISA portable
#define NDFAST_BYTES 16
#include "vectors.h"

#include "row_kernels_impl.h"
