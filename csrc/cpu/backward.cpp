// The gradients from the rows' coefficients.
#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>

#include "../nd_loss.h"
#include "rows.h"

namespace ndfast::cpu {
namespace {

template <class T>
struct Backward {
  const Values& grad_loss;
  double scale;
  const T* coefficients;  // [2, 4 or 8, N]
  int64_t N;
  const Matrix& student;
  const Centres& centres;
  Matrix* grad_student;  // each of these may be null
  const Matrix* teacher = nullptr;
  Matrix* grad_teacher = nullptr;
  Matrix* grad_centres = nullptr;         // with one centre a row
  const Matrix* grad_features = nullptr;  // is added to grad_student
  std::optional<T> written_for;  // a row with this upstream gradient has its gradient already

  T alpha(int64_t i) const { return coefficients[i]; }
  T beta(int64_t i) const { return coefficients[N + i]; }
  T gamma(int64_t i) const { return coefficients[2 * N + i]; }
  T delta(int64_t i) const { return coefficients[3 * N + i]; }
  // An ignored row has zeros for coefficients; its gradient is 0 even where it holds NaN.
  bool is_ignored(int64_t i) const { return alpha(i) == 0 && beta(i) == 0; }
  T upstream(int64_t i) const { return T(grad_loss[i] * scale); }

  void rows(int64_t begin, int64_t end) const {
    const auto& kernels = row_kernels<T>();
    CentreReader<T> reader(centres, student.dtype, kernels);
    const bool stream = grad_student && is_streamed(*grad_student);
    const int64_t D = student.D;
    for (int64_t i = begin; i < end; ++i) {
      const T g = upstream(i);
      if (g == written_for) continue;
      const bool ignored = is_ignored(i);
      const ConstRow c = ignored ? ConstRow{} : reader[i];
      const void* addend = grad_features ? grad_features->row(i).data : nullptr;
      if (!c.data) {  // ignored, or the labels have changed since forward
        const double value = ignored ? 0 : std::numeric_limits<double>::quiet_NaN();
        for (Matrix* grad : {grad_student, grad_teacher, grad_centres}) {
          if (grad) grad->fill_row(i, value);
        }
        if (ignored && addend) kernels.scale(grad_student->row(i), grad_features->row(i), T(1), D);
        continue;
      }
      const ConstRow s = student.row(i);
      const T to_centre = g * alpha(i);
      if (grad_student) {
        kernels.combine({grad_student->row(i), c, s, to_centre, g * beta(i), stream, addend}, D);
      }
      if (grad_teacher) kernels.scale(grad_teacher->row(i), teacher->row(i), g * gamma(i), D);
      if (grad_centres) {
        kernels.combine({grad_centres->row(i), c, s, g * delta(i), to_centre, false}, D);
      }
    }
    kernels.fence();
  }

  // The rows of each class one after the other, a class a thread: no atomics, and the same order of
  // additions whatever the number of threads.
  void class_gradient(Matrix& grad_class_means) const {
    constexpr int64_t kRowsOfPart = 64;
    const int64_t K = centres.class_means.N, D = student.D;
    const int64_t entries = centres.target_b ? 2 * N : N;
    const auto label = [&](int64_t e) {
      return e < N ? centres.target[e] : centres.target_b[e - N];
    };
    const auto counts = [&](int64_t e) {
      const int64_t k = label(e);
      return k >= 0 && k < K && !is_ignored(e % N);
    };
    std::vector<int64_t> first(K + 1, 0), by_class(entries);
    for (int64_t e = 0; e < entries; ++e) {
      if (counts(e)) ++first[label(e) + 1];
    }
    std::partial_sum(first.begin(), first.end(), first.begin());
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t e = 0; e < entries; ++e) {
      if (counts(e)) by_class[next[label(e)]++] = e;
    }

    const int64_t row_elements = D * std::max<int64_t>(1, entries / K);
    parallel_over_rows(K, row_elements, [&](int64_t begin, int64_t end) {
      const auto& kernels = row_kernels<T>();
      CentreReader<T> reader(centres, student.dtype, kernels);
      std::vector<T> sum(D), part(D);
      for (int64_t k = begin; k < end; ++k) {
        std::fill(sum.begin(), sum.end(), T(0));
        // In parts of so many rows: what is added to a long sum loses more to rounding.
        for (int64_t j = first[k]; j < first[k + 1];) {
          std::fill(part.begin(), part.end(), T(0));
          for (const int64_t stop = std::min(j + kRowsOfPart, first[k + 1]); j < stop; ++j) {
            const int64_t i = by_class[j] % N;
            const ConstRow c = reader[i];
            if (!c.data) continue;  // the other label of a mix is out of range
            const T share = !centres.target_b ? T(1) : T(centres.lam[i]);
            const T by = upstream(i) * (by_class[j] < N ? share : T(1) - share);
            kernels.accumulate(part.data(), c, student.row(i), by * delta(i), by * alpha(i), D);
          }
          std::transform(part.begin(), part.end(), sum.begin(), sum.begin(), std::plus<T>());
        }
        kernels.scale(grad_class_means.row(k), {sum.data(), kDtypeOf<T>}, T(1), D);
      }
    });
  }
};

// The scale in what forward has saved, which the coefficients follow.
template <class T>
const T* scale_in(const Tensor& saved, int64_t num_coefficients, int64_t N) {
  STD_TORCH_CHECK(saved.is_contiguous() && saved.numel() > num_coefficients * N &&
                      saved.element_size() == sizeof(T),
                  "saved does not fit student");
  return static_cast<const T*>(saved.data_ptr());
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward_in(const Tensor& grad_loss, const Tensor& saved,
                                               const Tensor& student, const OptionalTensor& teacher,
                                               const CentreTensors& centre_tensors,
                                               const OptionalTensor& grad_features,
                                               bool needs_student, bool needs_teacher,
                                               bool needs_class_means) {
  const MatrixOf s(student);
  const Centres centres(centre_tensors, s);
  const int64_t N = s.N;
  const T* const scale = scale_in<T>(saved, needs_teacher || needs_class_means ? 4 : 2, N);
  const Values upstream(grad_loss, N);
  std::optional<MatrixOf> t, features, grad_s, grad_t, grad_c;
  if (needs_teacher) {
    STD_TORCH_CHECK(teacher && teacher->dim() == 2, "teacher needs features for a gradient");
    t.emplace(*teacher);
    STD_TORCH_CHECK(t->N == N && t->D == s.D, "teacher does not fit student");
  }
  if (grad_features) {
    features.emplace(*grad_features);
    STD_TORCH_CHECK(
        needs_student && features->N == N && features->D == s.D && features->dtype == s.dtype,
        "grad_features do not fit student");
  }
  const auto output = [](bool needed, const Tensor& of, std::optional<MatrixOf>& matrix) {
    if (!needed) return empty_beside(of, {0}, of.scalar_type());
    Tensor grad = empty_beside(of, {of.size(0), of.size(1)}, of.scalar_type());
    matrix.emplace(grad);
    return grad;
  };
  Tensor grad_student = output(needs_student, student, grad_s);
  Tensor grad_teacher = output(needs_teacher, teacher ? *teacher : student, grad_t);
  Tensor grad_class_means = output(needs_class_means, centre_tensors.class_means, grad_c);

  const bool one_centre_a_row = !centres.target;
  Backward<T> pass{upstream, *scale, scale + 1, N, s, centres, grad_s ? &*grad_s : nullptr};
  if (grad_t) pass.teacher = &*t, pass.grad_teacher = &*grad_t;
  if (grad_c && one_centre_a_row) pass.grad_centres = &*grad_c;
  if (features) pass.grad_features = &*features;
  if (grad_s || grad_t || pass.grad_centres) {
    parallel_over_rows(N, s.D, [&](int64_t begin, int64_t end) { pass.rows(begin, end); });
  }
  if (grad_c && !one_centre_a_row) pass.class_gradient(*grad_c);
  return {grad_student, grad_teacher, grad_class_means};
}

template <class T>
void finish_(const Tensor& grad_student, const Tensor& grad_loss, const Tensor& saved,
             const Tensor& student, const CentreTensors& centre_tensors, double written_for) {
  const MatrixOf s(student);
  const Centres centres(centre_tensors, s);
  const int64_t N = s.N;
  MatrixOf grad(grad_student);
  STD_TORCH_CHECK(grad.N == N && grad.D == s.D, "grad_student does not fit student");
  const Values upstream(grad_loss, N);
  const T* const scale = scale_in<T>(saved, 2, N);
  if (upstream.is_single() && T(upstream[0] * *scale) == T(written_for)) return;
  Backward<T> pass{upstream, *scale, scale + 1, N, s, centres, &grad};
  pass.written_for = T(written_for);
  parallel_over_rows(N, s.D, [&](int64_t begin, int64_t end) { pass.rows(begin, end); });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_loss, Tensor saved, Tensor student,
                                            OptionalTensor teacher, Tensor class_means,
                                            OptionalTensor target, OptionalTensor target_b,
                                            OptionalTensor lam, double lam_scalar,
                                            OptionalTensor grad_features, bool needs_student,
                                            bool needs_teacher, bool needs_class_means) {
  const auto run =
      student.scalar_type() == ScalarType::Double ? backward_in<double> : backward_in<float>;
  return run(grad_loss, saved, student, teacher, {class_means, target, target_b, lam, lam_scalar},
             grad_features, needs_student, needs_teacher, needs_class_means);
}

void finish_gradient_(Tensor grad_student, Tensor grad_loss, Tensor saved, Tensor student,
                      Tensor class_means, OptionalTensor target, OptionalTensor target_b,
                      OptionalTensor lam, double lam_scalar, double written_for) {
  const auto run = student.scalar_type() == ScalarType::Double ? finish_<double> : finish_<float>;
  run(grad_student, grad_loss, saved, student, {class_means, target, target_b, lam, lam_scalar},
      written_for);
}

}  // namespace ndfast::cpu
