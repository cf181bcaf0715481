#include "forward_launch.cuh"

namespace ndfast::cuda {
template bool forward_rows<__half>(const ForwardArguments<float>&, const Launch&);
}  // namespace ndfast::cuda
