#include "backward_launch.cuh"

namespace ndfast::cuda {
template bool backward_rows<float>(const BackwardArguments<float>&, const Launch&);
template bool class_means_rows<float>(const ClassMeansArguments<float>&, const Launch&);
}  // namespace ndfast::cuda
