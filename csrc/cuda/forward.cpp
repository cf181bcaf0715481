// The op forward: outputs, arguments, one launch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../nd_loss.h"
#include "device.h"
#include "kernels.h"

namespace ndfast::cuda {
namespace {

void run(const ForwardArguments<float>& p, const Launch& launch) {
  bool done = false;
  switch (p.student.dtype) {
    case Dtype::float32: done = forward_rows<float>(p, launch); break;
    case Dtype::bfloat16: done = forward_rows<__nv_bfloat16>(p, launch); break;
    case Dtype::float16: done = forward_rows<__half>(p, launch); break;
    case Dtype::float64: break;
  }
  if (!done) forward_plain(p, launch);
}

void run(const ForwardArguments<double>& p, const Launch& launch) { forward_plain(p, launch); }

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward_in(const Tensor& student, const OptionalTensor& teacher,
                                              const CentreTensors& centres,
                                              const OptionalTensor& sample_weight, double weight,
                                              Reduction reduction, int64_t ignore_index, double eps,
                                              int64_t num_coefficients, bool gradient,
                                              double upstream) {
  const OnDevice device(student);
  const Launch& launch = device.launch();
  const int64_t N = student.size(0), D = student.size(1);
  Arguments arguments(student);
  const ScalarType dtype = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const auto empty = [&](std::initializer_list<int64_t> sizes, ScalarType type) {
    return empty_beside(student, sizes, type);
  };

  Tensor loss = reduction == kNone ? empty({N}, dtype) : empty({}, dtype);
  Tensor saved = empty({1 + num_coefficients * N}, dtype);
  Tensor grad_student =
      gradient ? empty({N, D}, student.scalar_type()) : empty({0}, student.scalar_type());

  ForwardArguments<T> p{};
  p.N = static_cast<int32_t>(N);
  p.D = static_cast<int32_t>(D);
  p.student = arguments.matrix(student, N, "student");
  if (teacher && teacher->dim() == 1) {
    p.teacher_norm = arguments.values(teacher, "teacher");
  } else {
    p.teacher = arguments.matrix(teacher, "teacher");
  }
  p.centres = arguments.centres(centres);
  p.sample_weight = arguments.values(sample_weight, "sample_weight");
  p.ignore_index = ignore_index;
  p.eps = static_cast<T>(eps);
  p.factor = reduction == kMean && N > 0 ? weight / static_cast<double>(N) : weight;
  p.row_factor = static_cast<T>(p.factor);
  p.reduction = reduction;
  p.num_coefficients = static_cast<int32_t>(num_coefficients);
  p.loss = static_cast<T*>(loss.data_ptr());
  p.scale = static_cast<T*>(saved.data_ptr());
  p.coefficients = p.scale + 1;
  if (gradient) p.grad_student = arguments.matrix(grad_student, N, "grad_student");
  p.upstream = static_cast<T>(upstream);

  // Both go back to torch's allocator at once: what it gives out next on this stream runs later.
  OptionalTensor partials, own_ticket;
  if (reduction != kNone) {
    partials = empty({int64_t(kMaxBlocksPerSm) * num_sms(launch.device), 2}, ScalarType::Double);
    p.partials = static_cast<LossSums*>(partials->data_ptr());
    p.ticket = take_ticket(launch);
    if (p.ticket < 0) {
      own_ticket = empty({1}, ScalarType::Int);
      p.own_ticket = static_cast<unsigned*>(own_ticket->data_ptr());
      check(cudaMemsetAsync(p.own_ticket, 0, sizeof(unsigned), launch.stream), "setting a ticket");
    }
  }
  run(p, launch);
  return {loss, saved, grad_student};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward(Tensor student, OptionalTensor teacher,
                                           Tensor class_means, OptionalTensor target,
                                           OptionalTensor target_b, OptionalTensor lam,
                                           double lam_scalar, OptionalTensor sample_weight,
                                           double weight, int64_t reduction, int64_t ignore_index,
                                           double eps, int64_t num_coefficients, bool gradient,
                                           double upstream) {
  const auto run =
      student.scalar_type() == ScalarType::Double ? forward_in<double> : forward_in<float>;
  return run(student, teacher, {class_means, target, target_b, lam, lam_scalar}, sample_weight,
             weight, static_cast<Reduction>(reduction), ignore_index, eps, num_coefficients,
             gradient, upstream);
}

}  // namespace ndfast::cuda
