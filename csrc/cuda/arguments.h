// What the kernels take, as plain structs: raw pointers, no checks. Filled by forward.cpp and
// backward.cpp.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace ndfast::cuda {

inline constexpr int kTickets = 4096;         // of each kernel's translation unit
inline constexpr int kMaxBlockThreads = 512;  // of a forward kernel
inline constexpr int kMaxBlocksPerSm = 32;    // more are not resident at once, on any GPU so far

// Rows and columns are counted in 32 bits, by loops that go up to a round beyond the last.
inline constexpr int64_t kMaxRows = int64_t(1) << 30;
inline constexpr int64_t kMaxColumns = int64_t(1) << 30;

enum class LabelDtype : int32_t { none, int64, int32, uint8 };

// [N, D] floats, unit stride along D. Null data: absent.
struct Matrix {
  char* data = nullptr;
  int64_t row_bytes = 0;
  Dtype dtype = Dtype::float32;
};

// [N] floats, stride 0 where one stands for all. Null data: absent.
struct Values {
  const void* data = nullptr;
  int64_t stride = 0;
  Dtype dtype = Dtype::float32;
};

// [N] class indices; none: a row's number stands for its label.
struct Labels {
  const char* data = nullptr;
  int64_t stride_bytes = 0;
  LabelDtype dtype = LabelDtype::none;
};

// What says where a row's centre is: a label, two labels and a share, or the row itself.
struct Centres {
  Matrix class_means;  // [K, D]
  int64_t K = 0;
  Labels target;
  Labels target_b;
  Values lam;
  double lam_scalar = 1;
};

// What rows add to the reduced loss. Sixteen bytes, which are stored and read at once.
struct alignas(16) LossSums {
  double loss;
  double weight;
};

// T is the type of the sums, float or double.
template <class T>
struct ForwardArguments {
  int32_t N;
  int32_t D;
  Matrix student;
  Matrix teacher;
  Values teacher_norm;
  Centres centres;
  Values sample_weight;
  int64_t ignore_index;
  T eps;
  // weight, for the mean over N: a row's gradient is written before the denominator is known, and
  // `scale` makes up for it.
  double factor;
  T row_factor;  // the same in the type of a row's arithmetic
  Reduction reduction;
  int32_t num_coefficients;
  T* loss;          // [N] or []
  T* scale;         // []
  T* coefficients;  // [num_coefficients, N]
  Matrix grad_student;
  T upstream;          // the gradient of the loss that grad_student is for
  LossSums* partials;  // [blocks]
  // Which of the kernel's own tickets counts the blocks that have stored theirs; where these are
  // used up, `own_ticket` is one that the host has set to 0.
  int32_t ticket;
  unsigned* own_ticket;
};

template <class T>
struct BackwardArguments {
  int32_t N;
  int32_t D;
  const T* grad_loss;
  int64_t grad_loss_stride;  // 0 where one stands for all
  const T* scale;
  const T* coefficients;  // [2, 4 or 8, N]
  Matrix student;
  Matrix teacher;
  Centres centres;
  Matrix grad_features;  // added to the student's gradient
  // The gradients that are wanted.
  Matrix grad_student;
  Matrix grad_teacher;
  Matrix grad_centres;  // of T
  // grad_student holds what is right for the upstream gradient `written_for`.
  bool is_finished;
  T written_for;
};

}  // namespace ndfast::cuda
