// The ops of the cuda backend; their contract is in ndfast/backends/__init__.py.
#pragma once

#include <tuple>

#include "tensors.h"

namespace ndfast::cuda {

// -> loss, saved, grad_student
std::tuple<Tensor, Tensor, Tensor> forward(Tensor student, OptionalTensor teacher,
                                           Tensor class_means, OptionalTensor target,
                                           OptionalTensor target_b, OptionalTensor lam,
                                           double lam_scalar, OptionalTensor sample_weight,
                                           double weight, int64_t reduction, int64_t ignore_index,
                                           double eps, int64_t num_coefficients, bool gradient);

// -> grad_student, grad_teacher, grad_centres, that of each row's centre in the type of the sums:
// nothing of shared class means is rounded before it is added up.
std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_loss, Tensor saved, Tensor student,
                                            OptionalTensor teacher, Tensor class_means,
                                            OptionalTensor target, OptionalTensor target_b,
                                            OptionalTensor lam, double lam_scalar,
                                            OptionalTensor grad_features, bool needs_student,
                                            bool needs_teacher, bool needs_centres);

// In place: writes the gradient that forward finished anew, unless the upstream gradient is 1.
void finish_gradient_(Tensor grad_student, Tensor grad_loss, Tensor saved, Tensor student,
                      Tensor class_means, OptionalTensor target, OptionalTensor target_b,
                      OptionalTensor lam, double lam_scalar);

}  // namespace ndfast::cuda
