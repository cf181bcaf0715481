// Registration of the ops of ndfast/backends/cuda.py, nothing else.
#include "../nd_loss.h"

#include "device.h"
#include "kernels.h"

// The tests' emulator registers them under another name, for CPU tensors.
#ifndef NDFAST_CUDA_LIBRARY
#define NDFAST_CUDA_LIBRARY ndfast_cuda
#define NDFAST_CUDA_KEY CUDA
#endif

// Their arguments are expanded first: torch 2.10's macros take the name as it is written.
#define NDFAST_REGISTER(library, m) STABLE_TORCH_LIBRARY(library, m)
#define NDFAST_REGISTER_KERNELS(library, key, m) STABLE_TORCH_LIBRARY_IMPL(library, key, m)

NDFAST_REGISTER(NDFAST_CUDA_LIBRARY, m) {
  m.def(NDFAST_FORWARD);
  m.def(NDFAST_BACKWARD);
  m.def(NDFAST_FINISH_GRADIENT);
  m.def("why_unusable(int device) -> str");
  m.def("versions() -> (int cuda, int least_driver, int cuda_of_driver)");
  m.def("architectures() -> str");
}

NDFAST_REGISTER_KERNELS(NDFAST_CUDA_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("why_unusable", TORCH_BOX(&ndfast::cuda::why_unusable));
  m.impl("versions", TORCH_BOX(&ndfast::cuda::versions));
  m.impl("architectures", TORCH_BOX(&ndfast::cuda::architectures));
}

NDFAST_REGISTER_KERNELS(NDFAST_CUDA_LIBRARY, NDFAST_CUDA_KEY, m) {
  m.impl("forward", TORCH_BOX(&ndfast::cuda::forward));
  m.impl("backward", TORCH_BOX(&ndfast::cuda::backward));
  m.impl("finish_gradient_", TORCH_BOX(&ndfast::cuda::finish_gradient_));
}
