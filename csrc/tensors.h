// Tensors of the stable ABI, for every compiled backend.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "dtype.h"

namespace ndfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What says where a row's centre is, as the ops take it: class means, which [N, D] are the rows'
// own without a target; one label or two of each row, and the share of the first, [N] or one for
// all.
struct CentreTensors {
  const Tensor& class_means;
  const OptionalTensor& target;
  const OptionalTensor& target_b;
  const OptionalTensor& lam;
  double lam_scalar;
};

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    default: STD_TORCH_CHECK(false, "expected a floating-point tensor");
  }
}

inline int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

// A contiguous tensor on `like`'s device, by the C shim, not by the dispatcher: a small batch calls
// this several times, and its time is the host's.
inline Tensor empty_beside(const Tensor& like, std::initializer_list<int64_t> sizes,
                           ScalarType dtype) {
  const int64_t* size = sizes.begin();
  const int64_t strides[] = {sizes.size() == 2 ? size[1] : 1, 1};
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), size, strides,
                                                  static_cast<int32_t>(dtype), device_type,
                                                  device_index, &handle));
  return Tensor(handle);
}

}  // namespace ndfast
