#include "forward_bfloat16.cu"
#include "forward_float16.cu"
#include "forward_float32.cu"
