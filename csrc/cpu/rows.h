// Reading a row's centre, and the split of rows over threads.
#pragma once

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace ndfast::cpu {

template <class T>
constexpr Dtype kDtypeOf = sizeof(T) == 8 ? Dtype::float64 : Dtype::float32;

// Class means, and what says which of them a row's centre is: a label, two labels and a share, or
// the row itself.
struct Centres {
  MatrixOf class_means;
  Labels target;
  Labels target_b;
  Values lam;

  Centres(const CentreTensors& of, const Matrix& student)
      : class_means(of.class_means),
        target(of.target, student.N),
        target_b(of.target_b, student.N),
        lam(of.lam, student.N, of.lam_scalar) {
    STD_TORCH_CHECK(class_means.D == student.D && (target || class_means.N == student.N),
                    "class_means do not fit student");
  }

  bool is_ignored(int64_t i, int64_t ignore_index) const {
    return (target && target[i] == ignore_index) || (target_b && target_b[i] == ignore_index);
  }
};

// A row's centre: where it lies if it has the type of the sums or the student's, else in a scratch
// row in the type of the sums.
template <class T>
class CentreReader {
 public:
  CentreReader(const Centres& of, Dtype student, const RowKernels<T>& kernels)
      : of_(of),
        kernels_(kernels),
        is_read_(of.class_means.dtype == kDtypeOf<T> || of.class_means.dtype == student) {
    const size_t D = of.class_means.D, converted = is_read_ ? 0 : D;
    first_.resize(converted);
    second_.resize(of.target_b ? converted : 0);
    mixed_.resize(of.target_b ? D : 0);
  }

  // Valid until the next call. `data` is null where a label is out of range: nothing is read there.
  ConstRow operator[](int64_t i) {
    if (!of_.target) return class_mean(i, first_);
    const int64_t a = of_.target[i];
    if (!in_range(a)) return {};
    if (!of_.target_b) return class_mean(a, first_);
    const int64_t b = of_.target_b[i];
    if (!in_range(b)) return {};
    const T share = T(of_.lam[i]);
    const Row mixed{mixed_.data(), kDtypeOf<T>};
    kernels_.combine(
        {mixed, class_mean(a, first_), class_mean(b, second_), share, T(1) - share, false},
        of_.class_means.D);
    return {mixed.data, mixed.dtype};
  }

  // The class mean that row i's centre is, or a mix's first; nothing is read of it. Null where a
  // label is out of range, or the centre has another type than the class mean.
  const void* as_it_lies(int64_t i) const {
    const int64_t k = of_.target ? of_.target[i] : i;
    const bool same_type = of_.target_b ? of_.class_means.dtype == kDtypeOf<T> : is_read_;
    return in_range(k) && same_type ? of_.class_means.row(k).data : nullptr;
  }

 private:
  bool in_range(int64_t label) const { return label >= 0 && label < of_.class_means.N; }

  ConstRow class_mean(int64_t k, std::vector<T>& converted) {
    const ConstRow row = of_.class_means.row(k);
    if (is_read_) return row;
    kernels_.scale({converted.data(), kDtypeOf<T>}, row, T(1), of_.class_means.D);
    return {converted.data(), kDtypeOf<T>};
  }

  const Centres& of_;
  const RowKernels<T>& kernels_;
  bool is_read_;  // a class mean where it lies
  // Scratch rows.
  std::vector<T> first_;
  std::vector<T> second_;
  std::vector<T> mixed_;
};

// Past this size what is written beside [N, D] features does not stay in any cache until it is read
// again, and writing past the caches saves reading the lines that are overwritten.
inline bool is_streamed(const Matrix& features) {
  return features.N * features.D * bytes_of(features.dtype) >= (int64_t(16) << 20);
}

// Calls f(begin, end) over [0, rows) on PyTorch's own threads, at least 32,768 elements each, as
// PyTorch's own elementwise kernels do.
template <class F>
void parallel_over_rows(int64_t rows, int64_t row_elements, const F& f) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, row_elements));
  torch::stable::parallel_for(0, rows, grain, f);
}

}  // namespace ndfast::cpu
