#include "backward_bfloat16.cu"
#include "backward_float16.cu"
#include "backward_float32.cu"
