#include "device.h"

#include <dlfcn.h>

#include "kernels.h"

namespace ndfast::cuda {
namespace {

constexpr const char* kNoStream = "this torch cannot tell its current CUDA stream";

// The stable ABI of torch 2.10 has no stream that a kernel could be launched on, and linking to
// libtorch_cuda would keep this library from loading beside a torch without it. So it is looked up
// in the library that torch has loaded.
using GetStream = AOTITorchError (*)(int32_t, void**);

GetStream find_get_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  return reinterpret_cast<GetStream>(
      dlsym(library ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
}

GetStream get_stream() {
  static const GetStream found = find_get_stream();
  return found;
}

cudaStream_t current_stream(int32_t device) {
  STD_TORCH_CHECK(get_stream(), kNoStream);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get_stream()(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// By NVIDIA's "CUDA Compatibility": within a major version, a driver of any minor version serves.
constexpr int64_t least_driver(int cuda) {
  switch (cuda / 1000) {
    case 12: return 525;
    case 13: return 580;
    default: return 0;
  }
}

bool is_of_capture(cudaError_t error) {
  return error >= cudaErrorStreamCaptureUnsupported && error <= cudaErrorStreamCaptureWrongThread;
}

}  // namespace

OnDevice::OnDevice(const Tensor& student)
    : guard_(student.get_device_index()),
      launch_{student.get_device_index(), current_stream(student.get_device_index())} {}

// A driver too old for the CUDA runtime in this library, or a GPU that it was not compiled for,
// would else show at every launch.
std::string why_unusable(int64_t device) {
  if (!get_stream()) return kNoStream;
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, any_kernel());
  if (error == cudaSuccess) return "";
  if (is_of_capture(error)) check(error, "loading the kernels");
  cudaGetLastError();
  return cudaGetErrorString(error);
}

std::tuple<int64_t, int64_t, int64_t> versions() {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return {CUDART_VERSION, least_driver(CUDART_VERSION), driver};
}

}  // namespace ndfast::cuda
