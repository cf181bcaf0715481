#include "backward_launch.cuh"

namespace ndfast::cuda {
template bool backward_rows<__half>(const BackwardArguments<float>&, const Launch&);
template bool class_means_rows<__half>(const ClassMeansArguments<float>&, const Launch&);
}  // namespace ndfast::cuda
