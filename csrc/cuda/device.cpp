#include "device.h"

#include <dlfcn.h>

namespace ndfast::cuda {
namespace {

// The stable ABI of torch 2.10 has no stream that a kernel could be launched on, and linking to
// libtorch_cuda would keep this library from loading beside a torch without it. So it is looked up
// in the library that torch has loaded.
cudaStream_t current_stream(int32_t device) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const auto get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void* symbol = dlsym(library ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<GetStream>(symbol);
  }();
  STD_TORCH_CHECK(get_stream, "this torch cannot tell its current CUDA stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

OnDevice::OnDevice(const Tensor& student)
    : guard_(student.get_device_index()),
      launch_{student.get_device_index(), current_stream(student.get_device_index())} {}

}  // namespace ndfast::cuda
