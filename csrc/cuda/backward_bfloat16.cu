#include "backward_launch.cuh"

namespace ndfast::cuda {
template bool backward_rows<__nv_bfloat16>(const BackwardArguments<float>&, const Launch&);
}  // namespace ndfast::cuda
