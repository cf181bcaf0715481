// Registration of the ops of ndfast/backends/cuda.py, nothing else.
#include "device.h"
#include "kernels.h"
#include "nd_loss.h"

// The tests' emulator registers them under another name, for CPU tensors.
#ifndef NDFAST_CUDA_LIBRARY
#define NDFAST_CUDA_LIBRARY ndfast_cuda
#define NDFAST_CUDA_KEY CUDA
#endif

// Their arguments are expanded first: torch 2.10's macros take the name as it is written.
#define NDFAST_REGISTER(library, m) STABLE_TORCH_LIBRARY(library, m)
#define NDFAST_REGISTER_KERNELS(library, key, m) STABLE_TORCH_LIBRARY_IMPL(library, key, m)

#define NDFAST_CENTRES \
  "Tensor class_means, Tensor? target, Tensor? target_b, Tensor? lam, float lam_scalar"

NDFAST_REGISTER(NDFAST_CUDA_LIBRARY, m) {
  m.def("forward(Tensor student, Tensor? teacher, " NDFAST_CENTRES
        ", Tensor? sample_weight, float weight, int reduction, int ignore_index, float eps, "
        "int num_coefficients, bool gradient) -> "
        "(Tensor loss, Tensor saved, Tensor grad_student)");
  m.def("backward(Tensor grad_loss, Tensor saved, Tensor student, Tensor? teacher, " NDFAST_CENTRES
        ", Tensor? grad_features, bool needs_student, bool needs_teacher, bool needs_centres) -> "
        "(Tensor grad_student, Tensor grad_teacher, Tensor grad_centres)");
  m.def(
      "finish_gradient_(Tensor(a!) grad_student, Tensor grad_loss, Tensor saved, "
      "Tensor student, " NDFAST_CENTRES ") -> ()");
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
