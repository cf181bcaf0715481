// One pass over the rows: loss, coefficients and, where asked for, the student's gradient.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "../nd_loss.h"
#include "rows.h"

namespace ndfast::cpu {
namespace {

template <class T>
struct Forward {
  const Matrix& student;
  const Matrix* teacher;       // features, or null
  const Values* teacher_norm;  // norms, or null
  const Centres& centres;
  const Values& sample_weight;
  int64_t ignore_index;
  double eps;
  double factor;  // weight over the denominator
  T upstream;     // the gradient of the loss that grad_student is for
  int64_t num_coefficients;
  T* loss;               // [N]
  T* coefficients;       // [num_coefficients, N]: the row's coefficients and its measures
  Matrix* grad_student;  // or null

  void write_coefficients(int64_t i, const RowTerms<T>& row, T by, const RowMeasures<T>& measures,
                          bool counts) const {
    const T values[] = {by * row.alpha,  by * row.beta,       by * row.gamma,  by * row.delta,
                        measures.cosine, measures.norm_ratio, measures.longer, T(counts)};
    for (int64_t k = 0; k < num_coefficients; ++k) coefficients[k * student.N + i] = values[k];
  }

  // A batch larger than the caches: memory reads and writes at once, so the gradient of a row is
  // written while the next is read, and later rows are asked for meanwhile. In the caches a row's
  // vectors are nearest right after its sums. bench/NOTES.md says what each brings.
  void rows(int64_t begin, int64_t end) const {
    const auto& kernels = row_kernels<T>();
    const bool is_large = is_streamed(student);
    // In turn: a centre is read again when its row's gradient is written, beside the next row.
    CentreReader<T> first(centres, student.dtype, kernels), second = first;
    CentreReader<T>*reader = &first, *reader_before = &second;
    Combination<T> gradient{};  // of the row before, not written yet
    for (int64_t i = begin; i < end; ++i) {
      if (centres.is_ignored(i, ignore_index)) {
        loss[i] = 0;
        write_coefficients(i, {}, T(0), {}, false);
        if (grad_student) grad_student->fill_row(i, 0);
        continue;
      }
      std::swap(reader, reader_before);
      const Vectors<T> row{student.row(i), teacher ? teacher->row(i) : ConstRow{}, (*reader)[i]};
      const auto ahead = is_large ? vectors_ahead(i, end, row, *reader) : VectorsAhead{};
      const auto sums = kernels.sums(row, ahead, gradient, student.D);
      const T norm_s = std::sqrt(sums.student_squared);
      const T norm_t = teacher_norm ? T((*teacher_norm)[i]) : std::sqrt(sums.teacher_squared);
      const auto terms = row_terms(norm_s, norm_t, std::sqrt(sums.centre_squared),
                                   sums.student_dot_centre, T(eps));
      const T by = T(factor * sample_weight[i]);
      loss[i] = by * terms.loss;
      const auto measures = num_coefficients == 8
                                ? row_measures(norm_s, norm_t, terms.projection, T(eps))
                                : RowMeasures<T>{};
      write_coefficients(i, terms, by, measures, true);
      if (!grad_student) continue;
      // To the bit what backward would write: with the same zeros, and multiplied in its order.
      const T alpha = by * terms.alpha, beta = by * terms.beta;
      if (alpha == 0 && beta == 0) {
        grad_student->fill_row(i, 0);
        gradient = {};
        continue;
      }
      gradient = {grad_student->row(i), row.centre,      row.student,
                  upstream * alpha,     upstream * beta, is_large};
      if (!is_large) kernels.combine(gradient, student.D);
    }
    if (is_large && gradient.out.data) kernels.combine(gradient, student.D);
    kernels.fence();
  }

  // About a page ahead of row i, where the processor's own looking ahead ends; of the centres the
  // next row's, where it is read as it lies.
  VectorsAhead vectors_ahead(int64_t i, int64_t end, const Vectors<T>& row,
                             const CentreReader<T>& reader) const {
    constexpr int64_t kBytes = 4096;
    const int64_t rows = std::max<int64_t>(1, kBytes / (student.D * bytes_of(student.dtype)));
    const int64_t last = end - 1, ahead = std::min(i + rows, last);
    const void* centre = reader.as_it_lies(std::min(i + 1, last));
    return {student.row(ahead).data, teacher ? teacher->row(ahead).data : nullptr,
            centre ? centre : row.centre.data};
  }
};

// Σ of the sample weights of the rows that count, after a look at every label.
double denominator_of(const Centres& centres, const Values& sample_weight, int64_t N,
                      int64_t ignore_index) {
  const int64_t K = centres.class_means.N;
  double sum = 0;
  for (int64_t i = 0; i < N; ++i) {
    for (const Labels* labels : {&centres.target, &centres.target_b}) {
      if (!*labels) continue;
      const int64_t label = (*labels)[i];
      STD_TORCH_CHECK((label >= 0 && label < K) || label == ignore_index,
                      "label out of range");  // told apart, with its row, in backends/native.py
    }
    if (!centres.is_ignored(i, ignore_index)) sum += sample_weight[i];
  }
  return sum;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward_in(const Tensor& student, const OptionalTensor& teacher,
                                              const CentreTensors& centre_tensors,
                                              const OptionalTensor& sample_weight, double weight,
                                              int64_t reduction, int64_t ignore_index, double eps,
                                              int64_t num_coefficients, bool gradient,
                                              double upstream) {
  const ScalarType dtype = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const MatrixOf s(student);
  const Centres centres(centre_tensors, s);
  const int64_t N = s.N;
  const Values weights(sample_weight, N);
  STD_TORCH_CHECK(num_coefficients >= 0 && num_coefficients <= 8, "num_coefficients: at most 8");
  std::optional<MatrixOf> t;
  std::optional<Values> t_norm;
  if (teacher && teacher->dim() == 1) {
    t_norm.emplace(teacher, N);
  } else if (teacher) {
    t.emplace(*teacher);
    STD_TORCH_CHECK(t->N == N && t->D == s.D, "teacher does not fit student");
  }
  const double denominator = denominator_of(centres, weights, N, ignore_index);
  const double mean_factor = denominator == 0 ? 0 : weight / denominator;

  const auto empty = [&](std::initializer_list<int64_t> sizes, ScalarType type) {
    return empty_beside(student, sizes, type);
  };
  Tensor saved = empty({1 + num_coefficients * N}, dtype);
  T* const scale = static_cast<T*>(saved.data_ptr());
  *scale = 1;
  Tensor grad_student =
      gradient ? empty({N, s.D}, student.scalar_type()) : empty({0}, student.scalar_type());
  Tensor loss = reduction == kNone ? empty({N}, dtype) : empty({}, dtype);
  std::unique_ptr<T[]> row_loss(reduction == kNone ? nullptr : new T[N]);
  std::optional<MatrixOf> grad;
  if (gradient) grad.emplace(grad_student);

  const Forward<T> pass{s,
                        t ? &*t : nullptr,
                        t_norm ? &*t_norm : nullptr,
                        centres,
                        weights,
                        ignore_index,
                        eps,
                        reduction == kMean ? mean_factor : weight,
                        T(upstream),
                        num_coefficients,
                        row_loss ? row_loss.get() : static_cast<T*>(loss.data_ptr()),
                        scale + 1,
                        grad ? &*grad : nullptr};
  parallel_over_rows(N, s.D, [&](int64_t begin, int64_t end) { pass.rows(begin, end); });
  if (row_loss) {
    // One order whatever the number of threads, so bitwise the same from run to run.
    double sum = 0;
    for (int64_t i = 0; i < N; ++i) sum += double(row_loss[i]);
    *static_cast<T*>(loss.data_ptr()) = T(sum);
  }
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
             weight, reduction, ignore_index, eps, num_coefficients, gradient, upstream);
}

}  // namespace ndfast::cpu
