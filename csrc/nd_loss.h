// The three ops of each compiled backend; their contract is in ndfast/backends/__init__.py.
#pragma once

#include <tuple>

#include "tensors.h"

namespace ndfast {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

// -> loss, saved, grad_student, which is for the upstream gradient
using Forward = Outputs(Tensor student, OptionalTensor teacher, Tensor class_means,
                        OptionalTensor target, OptionalTensor target_b, OptionalTensor lam,
                        double lam_scalar, OptionalTensor sample_weight, double weight,
                        int64_t reduction, int64_t ignore_index, double eps,
                        int64_t num_coefficients, bool gradient, double upstream);

// -> grad_student, grad_teacher, grad_class_means
using Backward = Outputs(Tensor grad_loss, Tensor saved, Tensor student, OptionalTensor teacher,
                         Tensor class_means, OptionalTensor target, OptionalTensor target_b,
                         OptionalTensor lam, double lam_scalar, OptionalTensor grad_features,
                         bool needs_student, bool needs_teacher, bool needs_class_means);

// In place: writes the gradient that forward finished anew, unless the upstream gradient is the one
// that it was written for.
using FinishGradient = void(Tensor grad_student, Tensor grad_loss, Tensor saved, Tensor student,
                            Tensor class_means, OptionalTensor target, OptionalTensor target_b,
                            OptionalTensor lam, double lam_scalar, double written_for);

namespace cpu {
// The scale is 1, for the labels are counted beforehand.
Forward forward;
Backward backward;
FinishGradient finish_gradient_;
}  // namespace cpu

namespace cuda {
Forward forward;
// The third gradient is that of each row's centre in the type of the sums: nothing of shared class
// means is rounded before it is added up.
Backward backward;
FinishGradient finish_gradient_;
}  // namespace cuda

}  // namespace ndfast

// Their schemas.
#define NDFAST_CENTRES \
  "Tensor class_means, Tensor? target, Tensor? target_b, Tensor? lam, float lam_scalar"
#define NDFAST_INPUTS "Tensor student, Tensor? teacher, " NDFAST_CENTRES
#define NDFAST_FORWARD                                                                  \
  "forward(" NDFAST_INPUTS                                                              \
  ", Tensor? sample_weight, float weight, int reduction, int ignore_index, float eps, " \
  "int num_coefficients, bool gradient, float upstream=1) -> "                          \
  "(Tensor loss, Tensor saved, Tensor grad_student)"
#define NDFAST_BACKWARD                                                                          \
  "backward(Tensor grad_loss, Tensor saved, " NDFAST_INPUTS                                      \
  ", Tensor? grad_features, bool needs_student, bool needs_teacher, bool needs_class_means) -> " \
  "(Tensor grad_student, Tensor grad_teacher, Tensor grad_class_means)"
#define NDFAST_FINISH_GRADIENT                                                        \
  "finish_gradient_(Tensor(a!) grad_student, Tensor grad_loss, Tensor saved, Tensor " \
  "student, " NDFAST_CENTRES ", float written_for=1) -> ()"
