// The forward kernels: loss, coefficients and gradient of the student in one launch. s, t and ds
// move through memory once, class means through L2.
#pragma once

#include "finish_loss.cuh"
#include "rows.cuh"

namespace ndfast::cuda {

// What a row brings beside its vectors, and what becomes of it.
template <class T>
struct Row {
  T share;         // of the first of mixed labels
  T teacher_norm;  // where it is given
  T weight;
  bool counts = false;
  T factor = 0;  // of its loss and coefficients
  RowTerms<T> terms{};
};

template <class T, bool kMix>
__device__ __forceinline__ Row<T> load_row(const ForwardArguments<T>& p, uint32_t i, bool valid) {
  if (!valid) return {T(1), T(0), T(0)};
  return {load_share<T, kMix>(p.centres, i), value_or(p.teacher_norm, i, T(0)),
          value_or(p.sample_weight, i, T(1))};
}

// From a row's sums, and its loss into `totals`.
template <bool kMix, class T, class Group>
__device__ __forceinline__ void finish_row(Row<T>& row, const ForwardArguments<T>& p, uint32_t i,
                                           bool valid, const RowSums<T>& sums,
                                           const RowLabels& labels, const Group& group,
                                           GroupTotals<Group::kBlockRows>& totals) {
  const T norm_s = sqrt(sums.student_squared);
  const T norm_t = p.teacher_norm.data ? row.teacher_norm : sqrt(sums.teacher_squared);
  const T norm_c = are_classes<kMix>(p.centres, labels) ? sqrt(sums.centre_squared) : T(NAN);
  row.terms = row_terms(norm_s, norm_t, norm_c, sums.student_dot_centre, p.eps);
  row.counts = valid && !are_ignored<kMix>(p.centres, labels, p.ignore_index);
  const T weight = row.counts ? row.weight : T(0);
  row.factor = weight * p.row_factor;
  if (group.lane() == 0 && valid) {
    const T loss = row.counts ? row.terms.loss : T(0);  // an ignored row may hold NaN
    if (p.reduction == kNone) {
      p.loss[i] = row.factor * loss;
    } else {
      totals.add(group.row(), double(weight * loss), double(weight));
    }
    const auto put = [&](int k, T value) {
      p.coefficients[k * int64_t(p.N) + i] = row.counts ? value : T(0);
    };
    if (p.num_coefficients >= 2) {
      put(0, row.factor * row.terms.alpha);
      put(1, row.factor * row.terms.beta);
    }
    if (p.num_coefficients >= 4) {
      put(2, row.factor * row.terms.gamma);
      put(3, row.factor * row.terms.delta);
    }
    if (p.num_coefficients == 8) {
      const auto measures = row_measures(norm_s, norm_t, row.terms.projection, p.eps);
      put(4, measures.cosine);
      put(5, measures.norm_ratio);
      put(6, measures.longer);
      put(7, T(1));
    }
  }
}

template <class T, class S, class Q, class Centre, int n>
__device__ __forceinline__ void add_products(RowSums<T>& sums, const Piece<T, S, n>& s,
                                             const Piece<T, Q, n>& t, const Centre& c, T share) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    // Student and teacher in the same way: equal rows have bitwise equal norms, for a tie belongs
    // to the student.
    const T s_i = s[i], t_i = t[i], c_i = c.get(i, share);
    sums.student_squared = fma(s_i, s_i, sums.student_squared);
    sums.teacher_squared = fma(t_i, t_i, sums.teacher_squared);
    sums.centre_squared = fma(c_i, c_i, sums.centre_squared);
    sums.student_dot_centre = fma(s_i, c_i, sums.student_dot_centre);
  }
}

// What a row's gradient is made of.
template <class T>
struct GradientTerms {
  T alpha;
  T beta;
  T share;  // of the first of mixed labels
  bool is_zero;

  // To the bit what backward would write: with the same zeros, and multiplied in its order.
  __device__ __forceinline__ GradientTerms(const Row<T>& row, T upstream)
      : alpha(row.factor * row.terms.alpha), beta(row.factor * row.terms.beta), share(row.share) {
    is_zero = !row.counts || (alpha == T(0) && beta == T(0));
    alpha *= upstream;
    beta *= upstream;
  }
};

template <class T, class S, class Centre, int n>
__device__ __forceinline__ Piece<T, S, n> gradient_of(const GradientTerms<T>& row,
                                                      const Piece<T, S, n>& s, const Centre& c) {
  Piece<T, S, n> gradient;
  gradient.fill([&](int i) {
    return row.is_zero ? T(0) : fma(row.alpha, c.get(i, row.share), row.beta * s[i]);
  });
  return gradient;
}

// Registers that a thread's pieces of s, t and c take, and what widening half precision and mixing
// take beside them.
template <class S, class C, int kPieces, class Q, bool kMix>
inline constexpr int kWords =
    kPieces * (kElements<S> * (sizeof(S) + sizeof(Q) + (kMix ? 2 : 1) * sizeof(C)) / 4 +
               (sizeof(S) == 2 ? 2 : 0) + (sizeof(C) == 2 ? 5 : 0)) +
    (kMix ? 4 : 0);

// A row is held in registers, kPieces pieces of each of its three vectors a thread. S, C and Q are
// the types of the student, the class means and the teacher.
template <class T, class S, class C, int kPieces, class Group, class Q, bool kMix>
__global__ void __launch_bounds__(Group::max_threads(kWords<S, C, kPieces, Q, kMix>),
                                  Group::min_blocks(kWords<S, C, kPieces, Q, kMix>))
    forward_kernel(const __grid_constant__ ForwardArguments<T> p) {
  constexpr int n = kElements<S>;
  Group group;
  __shared__ GroupTotals<Group::kBlockRows> totals;
  totals.clear();
  const uint32_t N = p.N, step = gridDim.x * group.rows(), start = blockIdx.x * group.rows();
  RowLabelBits next{};
  const auto offset_of = [&](int bytes) { return group.lane() * bytes; };
  // All threads of a block go round equally often, for they meet in the sums.
  for (uint32_t first = start, i = start + group.row(); first < N; first += step, i += step) {
    const bool valid = i < N;
    const int row_D = valid ? p.D : 0;  // a group without a row reads and stores nothing
    const auto has_piece = [&](int k) { return (group.lane() + k * group.size()) * n < row_D; };
    // One address for all pieces of a row, which lie a constant apart.
    Piece<T, S, n> s[kPieces];
    const char* row_s = row_of(p.student, i, offset_of(s[0].kBytes));
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      s[k].load(row_s + k * group.size() * s[0].kBytes, has_piece(k));
    }
    Piece<T, Q, n> t[kPieces];
    const char* row_t = row_of(p.teacher, i, offset_of(t[0].kBytes));
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      t[k].load(row_t + k * group.size() * t[0].kBytes, has_piece(k) && p.teacher.data);
    }
    // A row's centre waits for its label, which is therefore read one row ahead. The first row's is
    // read here: before the loop, s and t would wait for it too, whose addresses the compiler works
    // out after the centre's.
    if (first == start && valid) {
      const RowLabels labels = load_labels<kMix>(p.centres, i);
      next = {bits_of(labels.first), bits_of(labels.second)};
    }
    const RowLabels labels = labels_of<kMix>(p.centres, next);
    CentrePiece<T, C, n, kMix> c[kPieces];
    const CentreRows rows_c = rows_of<kMix>(p.centres, labels, offset_of(c[0].kBytes));
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      c[k].load(rows_c, k * group.size() * c[0].kBytes, has_piece(k));
    }
    Row<T> row = load_row<T, kMix>(p, i, valid);
    next = read_labels<kMix>(p.centres, i + step, i + step < N);

    RowSums<T> sums{0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      // For all threads alike: a row of three quarters of what they hold is a quarter less work.
      if (k > 0 && k * group.size() * n >= p.D) break;
      add_products(sums, s[k], t[k], c[k], row.share);
    }
    sums = group.sum(sums);
    finish_row<kMix>(row, p, i, valid, sums, labels, group, totals);
    if (p.grad_student.data) {
      char* row_g = row_of(p.grad_student, i, offset_of(s[0].kBytes));
      const GradientTerms<T> terms(row, p.upstream);
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        if (has_piece(k)) {
          gradient_of(terms, s[k], c[k]).store(row_g + k * group.size() * s[0].kBytes);
        }
      }
    }
  }
  finish_loss(p, group, totals);
}

// Threads of a block that goes through a row in rounds, the least blocks on a multiprocessor, and
// the pieces of a vector that a thread has on their way at once.
struct Loop {
  int threads;
  int blocks;
  int pieces;
};
template <class S>
inline constexpr Loop kLoop = {512, 2, 2};
template <>
inline constexpr Loop kLoop<AnyType> = {256, 3, 3};

// A row goes through a block in rounds: one longer than registers hold, and, with AnyType, rows of
// whatever types and alignments. Student and centre are read once more for the gradient.
template <class T, class S, class C, class Q, bool kMix>
__global__ void __launch_bounds__(kLoop<S>.threads, kLoop<S>.blocks)
    forward_loop_kernel(const __grid_constant__ ForwardArguments<T> p) {
  constexpr int n = kElements<S>, kPieces = kLoop<S>.pieces;
  BlockGroup<T> group;
  __shared__ GroupTotals<BlockGroup<T>::kBlockRows> totals;
  totals.clear();
  const int pieces = p.D / n, round = kPieces * group.size();
  for (uint32_t i = blockIdx.x; i < uint32_t(p.N); i += gridDim.x) {
    RowLabels labels{-1, -1};
    Row<T> row = load_row<T, kMix>(p, i, true);
    RowSums<T> sums{0, 0, 0, 0};
#pragma unroll 1
    for (int begin = group.lane(); begin < pieces; begin += round) {
      Piece<T, S, n> s[kPieces];
      Piece<T, Q, n> t[kPieces];
      CentrePiece<T, C, n, kMix> c[kPieces];
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        const int col = begin + k * group.size();
        s[k].load(p.student, i, col, col < pieces);
        t[k].load(p.teacher, i, col, col < pieces && p.teacher.data);
      }
      // Not before the first s and t, which would wait for it; a thread without a piece needs none.
      if (begin == group.lane()) labels = load_labels<kMix>(p.centres, i);
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        const int col = begin + k * group.size();
        c[k].load(p.centres, labels, col, col < pieces);
      }
#pragma unroll
      for (int k = 0; k < kPieces; ++k) add_products(sums, s[k], t[k], c[k], row.share);
    }
    sums = group.sum(sums);
    finish_row<kMix>(row, p, i, true, sums, labels, group, totals);
    if (p.grad_student.data) {
      const GradientTerms<T> terms(row, p.upstream);
#pragma unroll 1
      for (int begin = group.lane(); begin < pieces; begin += round) {
        Piece<T, S, n> s[kPieces];
        CentrePiece<T, C, n, kMix> c[kPieces];
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int col = begin + k * group.size();
          s[k].load(p.student, i, col, col < pieces);
          c[k].load(p.centres, labels, col, col < pieces);
        }
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int col = begin + k * group.size();
          if (col < pieces) gradient_of(terms, s[k], c[k]).store(p.grad_student, i, col);
        }
      }
    }
  }
  finish_loss(p, group, totals);
}

}  // namespace ndfast::cuda
