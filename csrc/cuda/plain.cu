// Rows of any types and alignment, and float64.
#include "backward_launch.cuh"
#include "forward_launch.cuh"

namespace ndfast::cuda {

const void* any_kernel() {
  return reinterpret_cast<const void*>(backward_kernel<float, AnyType, AnyType, 2, false>);
}

#define NDFAST_QUOTED(...) #__VA_ARGS__
#define NDFAST_LIST(...) NDFAST_QUOTED(__VA_ARGS__)
std::string architectures() { return NDFAST_LIST(__CUDA_ARCH_LIST__); }

template void forward_plain(const ForwardArguments<float>&, const Launch&);
template void forward_plain(const ForwardArguments<double>&, const Launch&);
template void backward_plain(const BackwardArguments<float>&, const Launch&);
template void backward_plain(const BackwardArguments<double>&, const Launch&);
}  // namespace ndfast::cuda
