// The ops backward and finish_gradient_: outputs, arguments, a launch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../nd_loss.h"
#include "device.h"
#include "kernels.h"

namespace ndfast::cuda {
namespace {

// Calls rows with a null pointer to the student's type; plain where that launched nothing.
template <class Rows, class Plain>
void run(Dtype dtype, const Rows& rows, const Plain& plain) {
  bool done = false;
  switch (dtype) {
    case Dtype::float32: done = rows(static_cast<float*>(nullptr)); break;
    case Dtype::bfloat16: done = rows(static_cast<__nv_bfloat16*>(nullptr)); break;
    case Dtype::float16: done = rows(static_cast<__half*>(nullptr)); break;
    case Dtype::float64: break;
  }
  if (!done) plain();
}

template <class T>
void run(const BackwardArguments<T>& p, const Launch& launch) {
  const auto rows = [&](auto* type) {
    if constexpr (sizeof(T) == 4) {
      return backward_rows<std::remove_pointer_t<decltype(type)>>(p, launch);
    }
    return false;
  };
  run(p.student.dtype, rows, [&] { backward_plain(p, launch); });
}

// A teacher of another type than the student, as a LayerNorm's float32 under autocast, has a launch
// of its own: its gradient needs nothing else of a row, and so each launch has rows of one type.
template <class T>
void run_by_type(const BackwardArguments<T>& p, const Launch& launch) {
  if (sizeof(T) == 8 || !p.grad_teacher.data || p.teacher.dtype == p.student.dtype) {
    return run(p, launch);
  }
  BackwardArguments<T> others = p, of_teacher = p;
  others.teacher = others.grad_teacher = {};
  if (p.grad_student.data || p.grad_centres.data) run(others, launch);
  of_teacher.student = of_teacher.grad_features = of_teacher.grad_student = {};
  of_teacher.student.dtype = p.teacher.dtype;
  of_teacher.centres = {};
  of_teacher.grad_centres = {};
  run(of_teacher, launch);
}

template <class T>
BackwardArguments<T> rows_of(Arguments& arguments, const Tensor& grad_loss, const Tensor& saved,
                             int64_t num_coefficients, const Tensor& student,
                             const CentreTensors& centres) {
  BackwardArguments<T> p{};
  p.N = static_cast<int32_t>(student.size(0));
  p.D = static_cast<int32_t>(student.size(1));
  STD_TORCH_CHECK(saved.numel() > num_coefficients * p.N && saved.is_contiguous() &&
                      saved.element_size() == sizeof(T),
                  "saved is not forward's");
  STD_TORCH_CHECK(grad_loss.scalar_type() == saved.scalar_type(),
                  "grad_loss: not of the loss's type");
  const Values upstream = arguments.values(grad_loss, "grad_loss");
  p.grad_loss = static_cast<const T*>(upstream.data);
  p.grad_loss_stride = upstream.stride;
  p.scale = static_cast<const T*>(saved.data_ptr());
  p.coefficients = p.scale + 1;
  p.student = arguments.matrix(student, p.N, "student");
  p.centres = arguments.centres(centres);
  return p;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward_in(const Tensor& grad_loss, const Tensor& saved,
                                               const Tensor& student, const OptionalTensor& teacher,
                                               const CentreTensors& centres,
                                               const OptionalTensor& grad_features,
                                               bool needs_student, bool needs_teacher,
                                               bool needs_centres) {
  const OnDevice device(student);
  const auto gradient = [&](bool needed, ScalarType type) {
    return needed ? empty_beside(student, {student.size(0), student.size(1)}, type)
                  : empty_beside(student, {0}, type);
  };
  STD_TORCH_CHECK(!needs_teacher || (teacher && teacher->dim() == 2),
                  "teacher: only features have a gradient");
  Tensor grad_student = gradient(needs_student, student.scalar_type());
  Tensor grad_teacher = gradient(needs_teacher, (needs_teacher ? *teacher : student).scalar_type());
  Tensor grad_centres = gradient(needs_centres, saved.scalar_type());

  Arguments arguments(student);
  auto p = rows_of<T>(arguments, grad_loss, saved, needs_teacher || needs_centres ? 4 : 2, student,
                      centres);
  if (needs_student) {
    p.grad_student = arguments.matrix(grad_student, p.N, "grad_student");
    p.grad_features = arguments.matrix(grad_features, "grad_features");
  }
  if (needs_teacher) {
    p.teacher = arguments.matrix(teacher, "teacher");
    p.grad_teacher = arguments.matrix(grad_teacher, p.N, "grad_teacher");
  }
  if (needs_centres) p.grad_centres = arguments.matrix(grad_centres, p.N, "grad_centres");
  run_by_type(p, device.launch());
  return {grad_student, grad_teacher, grad_centres};
}

template <class T>
void finish_(const Tensor& grad_student, const Tensor& grad_loss, const Tensor& saved,
             const Tensor& student, const CentreTensors& centres, double written_for) {
  if (student.size(0) == 0) return;  // the upstream gradients of no row cannot be looked at
  const OnDevice device(student);
  STD_TORCH_CHECK(grad_student.is_contiguous(), "grad_student is not forward's");
  Arguments arguments(student);
  auto p = rows_of<T>(arguments, grad_loss, saved, 2, student, centres);
  p.grad_student = arguments.matrix(grad_student, p.N, "grad_student");
  p.is_finished = true;
  p.written_for = static_cast<T>(written_for);
  run(p, device.launch());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_loss, Tensor saved, Tensor student,
                                            OptionalTensor teacher, Tensor class_means,
                                            OptionalTensor target, OptionalTensor target_b,
                                            OptionalTensor lam, double lam_scalar,
                                            OptionalTensor grad_features, bool needs_student,
                                            bool needs_teacher, bool needs_centres) {
  const auto run =
      student.scalar_type() == ScalarType::Double ? backward_in<double> : backward_in<float>;
  return run(grad_loss, saved, student, teacher, {class_means, target, target_b, lam, lam_scalar},
             grad_features, needs_student, needs_teacher, needs_centres);
}

void finish_gradient_(Tensor grad_student, Tensor grad_loss, Tensor saved, Tensor student,
                      Tensor class_means, OptionalTensor target, OptionalTensor target_b,
                      OptionalTensor lam, double lam_scalar, double written_for) {
  const auto run = student.scalar_type() == ScalarType::Double ? finish_<double> : finish_<float>;
  run(grad_student, grad_loss, saved, student, {class_means, target, target_b, lam, lam_scalar},
      written_for);
}

}  // namespace ndfast::cuda
