#include "backward_launch.cuh"

namespace ndfast::cuda {
template bool backward_rows<__half>(const BackwardArguments<float>&, const Launch&);
}  // namespace ndfast::cuda
