// Tensors of the stable ABI as the plain structs that the passes over rows take.
#pragma once

#include "../tensors.h"
#include "row_kernels.h"

namespace ndfast::cpu {

// [N, D] floats, unit stride along D.
struct Matrix {
  char* data = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t N = 0;
  int64_t D = 0;
  int64_t row_bytes = 0;

  Row row(int64_t i) { return {data + i * row_bytes, dtype}; }
  ConstRow row(int64_t i) const { return {data + i * row_bytes, dtype}; }
  void fill_row(int64_t i, double value) {
    const ConstRow one{&value, Dtype::float64};
    char* element = data + i * row_bytes;
    for (int64_t j = 0; j < D; ++j, element += bytes_of(dtype)) {
      portable::kernels<double>().scale({element, dtype}, one, 1, 1);
    }
  }
};

// Keeps the copy that a tensor without unit stride along D needs.
struct MatrixOf : Matrix {
  explicit MatrixOf(const Tensor& tensor) : keep(tensor) {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.is_cpu(), "expected a matrix on the CPU");
    if (tensor.stride(1) != 1 && tensor.size(1) != 1) keep = torch::stable::contiguous(tensor);
    data = static_cast<char*>(keep.data_ptr());
    dtype = dtype_of(keep);
    N = keep.size(0);
    D = keep.size(1);
    row_bytes = keep.stride(0) * bytes_of(dtype);
  }
  Tensor keep;
};

// [N] floats, or one that stands for all (stride 0), or none (every value is `absent`).
struct Values {
  const char* data = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t stride = 0;
  double absent = 1;

  explicit Values(double absent = 1) : absent(absent) {}
  Values(const OptionalTensor& tensor, int64_t N, double absent = 1) : absent(absent) {
    if (!tensor) return;
    const bool single = tensor->dim() == 0;
    STD_TORCH_CHECK(tensor->is_cpu() && (single || (tensor->dim() == 1 && tensor->size(0) == N)),
                    "expected one value a row on the CPU");
    data = static_cast<const char*>(tensor->data_ptr());
    dtype = dtype_of(*tensor);
    stride = single ? 0 : tensor->stride(0);
  }

  bool is_single() const { return !data || stride == 0; }
  double operator[](int64_t i) const {
    if (!data) return absent;
    const char* p = data + i * stride * bytes_of(dtype);
    double value;
    portable::kernels<double>().scale({&value, Dtype::float64}, {p, dtype}, 1, 1);
    return value;
  }
};

// [N] class indices of int64, int32 or uint8.
struct Labels {
  bool present = false;
  const void* data = nullptr;  // also null for N = 0
  ScalarType dtype = ScalarType::Long;
  int64_t stride = 0;

  Labels(const OptionalTensor& tensor, int64_t N) {
    if (!tensor) return;
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->dim() == 1 && tensor->size(0) == N,
                    "expected one label a row on the CPU");
    present = true;
    data = tensor->data_ptr();
    dtype = tensor->scalar_type();
    stride = tensor->stride(0);
    STD_TORCH_CHECK(
        dtype == ScalarType::Long || dtype == ScalarType::Int || dtype == ScalarType::Byte,
        "expected labels of int64, int32 or uint8");
  }

  explicit operator bool() const { return present; }
  int64_t operator[](int64_t i) const {
    switch (dtype) {
      case ScalarType::Long: return static_cast<const int64_t*>(data)[i * stride];
      case ScalarType::Int: return static_cast<const int32_t*>(data)[i * stride];
      default: return static_cast<const uint8_t*>(data)[i * stride];
    }
  }
};

}  // namespace ndfast::cpu
