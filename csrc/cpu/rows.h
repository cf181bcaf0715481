// Reading rows and their centres in the type of the sums, and the split of rows over threads.
#pragma once

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace ndfast::cpu {

// A row where it lies if it has the type of the sums, else converted into a scratch row.
template <class T>
class RowReader {
 public:
  RowReader(const Matrix& matrix, const RowKernels<T>& kernels)
      : matrix_(matrix), kernels_(kernels) {
    if (!in_place()) scratch_.resize(matrix.D);
  }

  const T* operator[](int64_t i) {
    if (in_place()) return reinterpret_cast<const T*>(matrix_.row(i));
    kernels_.load(scratch_.data(), matrix_.row(i), matrix_.dtype, matrix_.D);
    return scratch_.data();
  }

 private:
  bool in_place() const {
    return matrix_.dtype == (sizeof(T) == 8 ? Dtype::float64 : Dtype::float32);
  }

  const Matrix& matrix_;
  const RowKernels<T>& kernels_;
  std::vector<T> scratch_;
};

// What says where a row's centre is: a label, two labels and a share, or the row itself.
struct CentreIndex {
  Labels target;
  Labels target_b;
  Values lam;

  bool is_ignored(int64_t i, int64_t ignore_index) const {
    return (target && target[i] == ignore_index) || (target_b && target_b[i] == ignore_index);
  }
};

// A row's centre, or null where a label is out of range: nothing is read there.
template <class T>
class CentreReader {
 public:
  CentreReader(const Matrix& class_means, const CentreIndex& index, const RowKernels<T>& kernels)
      : class_means_(class_means),
        index_(index),
        kernels_(kernels),
        first_(class_means, kernels),
        second_(class_means, kernels),
        mixed_(index.target_b ? class_means.D : 0) {}

  const T* operator[](int64_t i) {
    if (!index_.target) return first_[i];
    const int64_t a = index_.target[i];
    if (!in_range(a)) return nullptr;
    if (!index_.target_b) return first_[a];
    const int64_t b = index_.target_b[i];
    if (!in_range(b)) return nullptr;
    const T share = T(index_.lam[i]);
    kernels_.combine(mixed_.data(), first_[a], second_[b], share, T(1) - share, class_means_.D,
                     false);
    return mixed_.data();
  }

 private:
  bool in_range(int64_t label) const { return label >= 0 && label < class_means_.N; }

  const Matrix& class_means_;
  const CentreIndex& index_;
  const RowKernels<T>& kernels_;
  RowReader<T> first_;
  RowReader<T> second_;
  std::vector<T> mixed_;
};

// A row to write: where it goes if it has the type of the sums, else a scratch row to be stored.
template <class T>
class RowWriter {
 public:
  RowWriter(const Matrix& matrix, const RowKernels<T>& kernels)
      : matrix_(matrix), kernels_(kernels) {
    // Past this size the output does not stay in any cache until it is read again, and writing
    // past the caches saves reading the lines that are overwritten. Measured on two cores with
    // 32 MiB of last-level cache.
    constexpr int64_t kStreamBytes = int64_t(16) << 20;
    stream_ = in_place() && matrix.N * matrix.row_bytes >= kStreamBytes;
    if (!in_place() && matrix.data) scratch_.resize(matrix.D);
  }

  void combine(int64_t i, const T* a, const T* b, T x, T y) {
    kernels_.combine(at(i), a, b, x, y, matrix_.D, stream_);
    finish(i);
  }
  void scale(int64_t i, const T* a, T x) {
    kernels_.scale(at(i), a, x, matrix_.D);
    finish(i);
  }
  void fill(int64_t i, T value) {
    std::fill_n(at(i), matrix_.D, value);
    finish(i);
  }

 private:
  bool in_place() const {
    return matrix_.dtype == (sizeof(T) == 8 ? Dtype::float64 : Dtype::float32);
  }
  T* at(int64_t i) { return in_place() ? reinterpret_cast<T*>(matrix_.row(i)) : scratch_.data(); }
  void finish(int64_t i) {
    if (!in_place()) kernels_.store(matrix_.row(i), matrix_.dtype, scratch_.data(), matrix_.D);
  }

  const Matrix& matrix_;
  const RowKernels<T>& kernels_;
  bool stream_ = false;
  std::vector<T> scratch_;
};

// Calls f(begin, end) over [0, rows) on PyTorch's own threads, at least 32,768 elements each, as
// PyTorch's own elementwise kernels do.
template <class F>
void parallel_over_rows(int64_t rows, int64_t row_elements, const F& f) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, row_elements));
  torch::stable::parallel_for(0, rows, grain, f);
}

}  // namespace ndfast::cpu
