// The ops backward and finish_gradient_: outputs, arguments, a launch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device.h"
#include "kernels.h"
#include "nd_loss.h"

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
void run(const ClassMeansArguments<T>& p, const Launch& launch) {
  const auto rows = [&](auto* type) {
    if constexpr (sizeof(T) == 4) {
      return class_means_rows<std::remove_pointer_t<decltype(type)>>(p, launch);
    }
    return false;
  };
  run(p.rows.student.dtype, rows, [&] { class_means_plain(p, launch); });
  if (p.num_parts > 0) add_parts(p, launch);
}

template <class T>
BackwardArguments<T> rows_of(Arguments& arguments, const Tensor& grad_loss, const Tensor& scale,
                             const Tensor& coefficients, int64_t num_coefficients,
                             const Tensor& student, const Tensor& class_means,
                             const OptionalTensor& target, const OptionalTensor& target_b,
                             const OptionalTensor& lam, double lam_scalar) {
  BackwardArguments<T> p{};
  p.N = student.size(0);
  p.D = static_cast<int32_t>(student.size(1));
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(0) >= num_coefficients &&
                      coefficients.size(1) == p.N && coefficients.is_contiguous(),
                  "coefficients are not forward's");
  p.grad_loss = arguments.values(grad_loss, "grad_loss");
  p.scale = static_cast<const T*>(scale.data_ptr());
  p.coefficients = static_cast<const T*>(coefficients.data_ptr());
  p.student = arguments.matrix(student, p.N, "student");
  p.centres = arguments.centres(class_means, target, target_b, lam, lam_scalar);
  return p;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward_in(
    const Tensor& grad_loss, const Tensor& scale, const Tensor& coefficients, const Tensor& student,
    const OptionalTensor& teacher, const Tensor& class_means, const OptionalTensor& target,
    const OptionalTensor& target_b, const OptionalTensor& lam, double lam_scalar,
    const OptionalTensor& grad_features, const OptionalTensor& labels, const OptionalTensor& order,
    const OptionalTensor& bounds, bool needs_student, bool needs_teacher, bool needs_class_means) {
  const OnDevice device(student);
  const auto gradient = [&](const Tensor& of, bool needed) {
    return needed ? empty_beside(student, {of.size(0), of.size(1)}, of.scalar_type())
                  : empty_beside(student, {0}, of.scalar_type());
  };
  STD_TORCH_CHECK(!needs_teacher || (teacher && teacher->dim() == 2),
                  "teacher: only features have a gradient");
  Tensor grad_student = gradient(student, needs_student);
  Tensor grad_teacher = gradient(needs_teacher ? *teacher : student, needs_teacher);
  Tensor grad_class_means = gradient(class_means, needs_class_means);

  Arguments arguments(student);
  auto p = rows_of<T>(arguments, grad_loss, scale, coefficients,
                      needs_teacher || needs_class_means ? 4 : 2, student, class_means, target,
                      target_b, lam, lam_scalar);
  if (needs_class_means && target) {
    const int64_t K = class_means.size(0);
    STD_TORCH_CHECK(
        labels && order && bounds && labels->size(0) == order->size(0) && bounds->size(0) == K + 1,
        "labels, order and bounds of the classes are missing");
    const int64_t num_labels = labels->size(0);
    const int64_t num_parts = num_labels < 2 * kPartRows ? 0 : num_labels / kPartRows;
    // They go back to torch's allocator at once: what it gives out next on this stream runs later.
    const Tensor parts = empty_beside(student, {num_parts, p.D}, scale.scalar_type());
    const ClassMeansArguments<T> of_classes{
        p,
        static_cast<const int64_t*>(labels->data_ptr()),
        static_cast<const int64_t*>(order->data_ptr()),
        static_cast<const int64_t*>(bounds->data_ptr()),
        num_parts,
        arguments.matrix(parts, num_parts, "parts"),
        arguments.matrix(grad_class_means, K, "grad_class_means")};
    run(of_classes, device.launch());
  }
  if (needs_student) {
    p.grad_student = arguments.matrix(grad_student, p.N, "grad_student");
    p.grad_features = arguments.matrix(grad_features, "grad_features");
  }
  if (needs_teacher) {
    p.teacher = arguments.matrix(teacher, "teacher");
    p.grad_teacher = arguments.matrix(grad_teacher, p.N, "grad_teacher");
  }
  if (needs_class_means && !target) {
    p.grad_centres = arguments.matrix(grad_class_means, p.N, "grad_class_means");
  }
  if (needs_student || needs_teacher || p.grad_centres.data) run_by_type(p, device.launch());
  return {grad_student, grad_teacher, grad_class_means};
}

template <class T>
void finish_(const Tensor& grad_student, const Tensor& grad_loss, const Tensor& scale,
             const Tensor& coefficients, const Tensor& student, const Tensor& class_means,
             const OptionalTensor& target, const OptionalTensor& target_b,
             const OptionalTensor& lam, double lam_scalar) {
  if (student.size(0) == 0) return;  // the upstream gradients of no row cannot be looked at
  const OnDevice device(student);
  STD_TORCH_CHECK(grad_student.is_contiguous(), "grad_student is not forward's");
  Arguments arguments(student);
  auto p = rows_of<T>(arguments, grad_loss, scale, coefficients, 2, student, class_means, target,
                      target_b, lam, lam_scalar);
  p.grad_student = arguments.matrix(grad_student, p.N, "grad_student");
  p.is_finished = true;
  run(p, device.launch());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_loss, Tensor scale, Tensor coefficients, Tensor student, OptionalTensor teacher,
    Tensor class_means, OptionalTensor target, OptionalTensor target_b, OptionalTensor lam,
    double lam_scalar, OptionalTensor grad_features, OptionalTensor labels, OptionalTensor order,
    OptionalTensor bounds, bool needs_student, bool needs_teacher, bool needs_class_means) {
  const auto run =
      student.scalar_type() == ScalarType::Double ? backward_in<double> : backward_in<float>;
  return run(grad_loss, scale, coefficients, student, teacher, class_means, target, target_b, lam,
             lam_scalar, grad_features, labels, order, bounds, needs_student, needs_teacher,
             needs_class_means);
}

void finish_gradient_(Tensor grad_student, Tensor grad_loss, Tensor scale, Tensor coefficients,
                      Tensor student, Tensor class_means, OptionalTensor target,
                      OptionalTensor target_b, OptionalTensor lam, double lam_scalar) {
  const auto run = student.scalar_type() == ScalarType::Double ? finish_<double> : finish_<float>;
  run(grad_student, grad_loss, scale, coefficients, student, class_means, target, target_b, lam,
      lam_scalar);
}

}  // namespace ndfast::cuda
