#include "forward_launch.cuh"

namespace ndfast::cuda {
template bool forward_rows<float>(const ForwardArguments<float>&, const Launch&);
}  // namespace ndfast::cuda
