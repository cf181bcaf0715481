// Tensors of the stable ABI as the plain structs that the kernels take.
#pragma once

#include <utility>
#include <vector>

#include "../tensors.h"
#include "arguments.h"

namespace ndfast::cuda {

// Brings arguments to structs that point into them, and keeps the copies that some of them need.
class Arguments {
 public:
  explicit Arguments(const Tensor& student)
      : device_(student.get_device_index()), N_(student.size(0)), D_(student.size(1)) {
    STD_TORCH_CHECK(N_ <= kMaxRows && D_ <= kMaxColumns, "student: got [", N_, ", ", D_,
                    "]; expected at most 2^30 rows of at most 2^30 features");
  }

  // [N, D], or [rows, D].
  Matrix matrix(const OptionalTensor& tensor, const char* name) {
    return tensor ? matrix(*tensor, N_, name) : Matrix{};
  }
  Matrix matrix(const Tensor& tensor, int64_t rows, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == D_ &&
                        tensor.get_device_index() == device_,
                    name, ": expected ", rows, " rows of the student's length and device");
    if (tensor.stride(1) == 1 || D_ == 1) return as_it_lies(tensor);
    copies_.push_back(torch::stable::contiguous(tensor));
    return as_it_lies(copies_.back());
  }

  // [N], or one for all.
  Values values(const OptionalTensor& tensor, const char* name) {
    if (!tensor) return {};
    const bool single = tensor->dim() == 0;
    STD_TORCH_CHECK((single || (tensor->dim() == 1 && tensor->size(0) == N_)) &&
                        tensor->get_device_index() == device_,
                    name, ": expected a value a row on the student's device");
    return {tensor->data_ptr(), single ? 0 : tensor->stride(0), dtype_of(*tensor)};
  }

  Labels labels(const OptionalTensor& tensor, const char* name) {
    if (!tensor) return {};
    STD_TORCH_CHECK(
        tensor->dim() == 1 && tensor->size(0) == N_ && tensor->get_device_index() == device_, name,
        ": expected a label a row on the student's device");
    const ScalarType type = tensor->scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Byte,
                    name, ": expected int64, int32 or uint8");
    const auto [dtype, bytes] = type == ScalarType::Long  ? std::pair(LabelDtype::int64, 8)
                                : type == ScalarType::Int ? std::pair(LabelDtype::int32, 4)
                                                          : std::pair(LabelDtype::uint8, 1);
    return {static_cast<const char*>(tensor->data_ptr()), tensor->stride(0) * bytes, dtype};
  }

  Centres centres(const CentreTensors& of) {
    Centres centres;
    centres.K = of.target ? of.class_means.size(0) : N_;
    centres.class_means = matrix(of.class_means, centres.K, "class_means");
    centres.target = labels(of.target, "target");
    centres.target_b = labels(of.target_b, "target_b");
    centres.lam = values(of.lam, "lam");
    centres.lam_scalar = of.lam_scalar;
    return centres;
  }

 private:
  static Matrix as_it_lies(const Tensor& tensor) {
    const Dtype dtype = dtype_of(tensor);
    return {static_cast<char*>(tensor.data_ptr()), tensor.stride(0) * bytes_of(dtype), dtype};
  }

  int64_t device_;
  int64_t N_;
  int64_t D_;
  std::vector<Tensor> copies_;
};

}  // namespace ndfast::cuda
