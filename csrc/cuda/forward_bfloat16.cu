#include "forward_launch.cuh"

namespace ndfast::cuda {
template bool forward_rows<__nv_bfloat16>(const ForwardArguments<float>&, const Launch&);
}  // namespace ndfast::cuda
