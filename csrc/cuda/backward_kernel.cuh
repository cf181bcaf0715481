// The backward kernels: gradients from the rows' coefficients. Rows are independent, nothing is
// summed over their elements.
#pragma once

#include "rows.cuh"

namespace ndfast::cuda {

template <class T>
__device__ __forceinline__ T upstream_of(const BackwardArguments<T>& p, int64_t i) {
  return load_element<T>(p.grad_loss.data, i * p.grad_loss.stride, p.grad_loss.dtype) * *p.scale;
}

// A row's coefficients and its upstream gradient as they lie in memory: asked for with the row, and
// nothing is made of them before its label has come, for that would wait.
template <class T>
struct ReadCoefficients {
  T alpha;
  T beta;
  T delta;
  T scale;
  Bits<T> grad_loss;
};

template <class T>
__device__ __forceinline__ ReadCoefficients<T> read_coefficients(const BackwardArguments<T>& p,
                                                                 int64_t i, bool of_centre) {
  return {p.coefficients[i], p.coefficients[p.N + i],
          of_centre ? p.coefficients[3 * p.N + i] : T(0), *p.scale,
          load_bits<T>(p.grad_loss.data, i * p.grad_loss.stride, p.grad_loss.dtype)};
}

// A row's coefficients, times its upstream gradient.
template <class T>
struct Coefficients {
  T alpha;
  T beta;
  T delta;
  bool is_dead;  // an ignored row: its gradient is 0 even where it holds NaN
};

template <class T>
__device__ __forceinline__ Coefficients<T> times_upstream(const ReadCoefficients<T>& by,
                                                          Dtype grad_loss_dtype, bool in_range) {
  const T upstream = value_of<T>(by.grad_loss, grad_loss_dtype) * by.scale;
  // A label that is no class has the centre NaN.
  return {in_range ? upstream * by.alpha : T(NAN), upstream * by.beta, upstream * by.delta,
          by.alpha == T(0) && by.beta == T(0)};
}

inline constexpr int kBackwardThreads = 256;

// Threads of a block: x along a row, y over rows. In a round a thread takes kPieces pieces, all
// read before the first is written.
template <class T, class S, class C, int kPieces, bool kMix>
__global__ void __launch_bounds__(kBackwardThreads, kMix&& kPieces > 1 ? 3 : 4)
    backward_kernel(const __grid_constant__ BackwardArguments<T> p) {
  constexpr int n = kElements<S>;
  if (p.is_finished && p.grad_loss.stride == 0 && upstream_of(p, 0) == T(1)) return;
  const int pieces = p.D / n;
  const int64_t step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; i < p.N; i += step) {
    if (p.is_finished && p.grad_loss.stride != 0 && upstream_of(p, i) == T(1)) continue;
    if (p.grad_student.data || p.grad_centres.data) {
#pragma unroll 1
      for (int begin = threadIdx.x; begin < pieces; begin += kPieces * blockDim.x) {
        Piece<T, S, n> s[kPieces], g[kPieces];
        CentrePiece<T, C, n, kMix> c[kPieces];
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int col = begin + k * blockDim.x;
          s[k].load(p.student, i, col, col < pieces);
          g[k].load(p.grad_features, i, col, col < pieces && p.grad_features.data);
        }
        const auto read = read_coefficients(p, i, p.grad_centres.data);
        // Only now what waits for the label, and what is made of numbers that are read.
        const RowLabels labels = load_labels<kMix>(p.centres, i, true);
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int col = begin + k * blockDim.x;
          c[k].load(p.centres, labels, col, col < pieces);
        }
        const T share = load_share<T, kMix>(p.centres, i, true);
        const auto by =
            times_upstream(read, p.grad_loss.dtype, are_classes<kMix>(p.centres, labels));
        if (p.grad_student.data) {
#pragma unroll
          for (int k = 0; k < kPieces; ++k) {
            const int col = begin + k * blockDim.x;
            Piece<T, S, n> gradient;
            gradient.fill([&](int e) {
              const T nd = fma(by.alpha, c[k].get(e, share), by.beta * s[k][e]);
              return by.is_dead ? g[k][e] : g[k][e] + nd;
            });
            if (col < pieces) gradient.store(p.grad_student, i, col);
          }
        }
        if (p.grad_centres.data) {
#pragma unroll
          for (int k = 0; k < kPieces; ++k) {
            const int col = begin + k * blockDim.x;
            Piece<T, C, n> gradient;
            gradient.fill([&](int e) {
              return by.is_dead ? T(0) : fma(by.alpha, s[k][e], by.delta * c[k].get(e, share));
            });
            if (col < pieces) gradient.store(p.grad_centres, i, col);
          }
        }
      }
    }
    if (p.grad_teacher.data) {
      const T upstream = upstream_of(p, i);
      const T gamma = upstream * p.coefficients[2 * p.N + i];
      const bool is_dead = p.coefficients[i] == T(0) && p.coefficients[p.N + i] == T(0);
#pragma unroll 1
      for (int col = threadIdx.x; col < pieces; col += blockDim.x) {
        Piece<T, S, n> t, gradient;
        t.load(p.teacher, i, col, true);
        gradient.fill([&](int e) { return is_dead ? T(0) : gamma * t[e]; });
        gradient.store(p.grad_teacher, i, col);
      }
    }
  }
}

inline constexpr int kColumns = 32, kClassRows = 8;

// Where a cut is among the rows in the order of their labels.
__device__ __forceinline__ int64_t row_of_cut(int64_t cut) { return (cut + 1) * kRowsBetweenCuts; }

// The class that a cut goes through, or -1.
template <class T>
__device__ __forceinline__ int64_t cut_class(const ClassMeansArguments<T>& p, int64_t cut) {
  const int64_t row = row_of_cut(cut);
  int64_t low = 0, high = p.rows.centres.K + 1;  // the first that begins behind it
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (p.bounds[middle] <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  // The row behind the cut may have no class, or be the first of its own.
  return low == 0 || low > p.rows.centres.K || p.bounds[low - 1] == row ? -1 : low - 1;
}

// The sum over y of what the threads of a column have, for y = 0.
template <class T, class Values>
__device__ __forceinline__ T sum_over_y(const Values& values) {
  T total = values[0][threadIdx.x];
  for (int y = 1; y < kClassRows; ++y) total += values[y][threadIdx.x];
  return total;
}

// The gradient of the class mean that rows share: blocks over stretches of columns and, of the rows
// in the order of their labels, over those of each class up to its first cut, and over those from
// each cut through a class up to the next; threads x along the columns, y over the rows. Sums are
// added in a fixed order, no atomics.
template <class T, class S, class C, bool kMix>
__global__ void __launch_bounds__(kColumns* kClassRows, 4)
    class_means_kernel(const __grid_constant__ ClassMeansArguments<T> p) {
  constexpr int n = kElements<S>;
  __shared__ T sums[n][kClassRows][kColumns];
  const BackwardArguments<T>& rows = p.rows;
  const int pieces = rows.D / n, stretches = (pieces + kColumns - 1) / kColumns;
  const int64_t own = blockIdx.x / stretches, cut = own - rows.centres.K;
  const int64_t k = cut < 0 ? own : cut_class(p, cut);
  if (k < 0) return;
  const int64_t begin = cut < 0 ? p.bounds[k] : row_of_cut(cut);
  const int64_t next_cut = begin / kRowsBetweenCuts;
  const int64_t end_of_class = p.bounds[k + 1];
  const bool is_cut = end_of_class > row_of_cut(next_cut);
  const int64_t end = is_cut ? row_of_cut(next_cut) : end_of_class;
  const bool is_part = is_cut || cut >= 0;
  const int64_t row_of_sum = !is_part ? k : cut < 0 ? 2 * next_cut : 2 * cut + 1;
  const int col = blockIdx.x % stretches * kColumns + threadIdx.x;
  const bool has_column = col < pieces;
  T sum[n] = {};
  CentrePiece<T, C, n, kMix> c;
  if constexpr (!kMix) c.load(rows.centres, {k, k}, col, has_column);  // all rows' is the same
  int64_t j = begin + threadIdx.y;
  int64_t next = j < end ? p.order[j] : 0;  // read one row ahead: all else of a row waits for it
#pragma unroll(kMix ? 1 : 2)
  for (; j < end; j += kClassRows) {
    const bool is_first = next < rows.N;
    const int64_t i = is_first ? next : next - rows.N;
    if (j + kClassRows < end) next = p.order[j + kClassRows];
    Piece<T, S, n> s;
    s.load(rows.student, i, col, has_column);
    const auto read = read_coefficients(rows, i, true);
    RowLabels labels{k, k};
    if constexpr (kMix) {
      labels = load_labels<kMix>(rows.centres, i, true);
      c.load(rows.centres, labels, col, has_column);
    }
    const T share = load_share<T, kMix>(rows.centres, i, true);
    const auto by =
        times_upstream(read, rows.grad_loss.dtype, are_classes<kMix>(rows.centres, labels));
    const T own_share = !kMix || is_first ? share : T(1) - share;
#pragma unroll
    for (int e = 0; e < n; ++e) {
      const T gradient = fma(by.alpha, s[e], by.delta * c.get(e, share));
      sum[e] += by.is_dead ? T(0) : own_share * gradient;
    }
  }
#pragma unroll
  for (int e = 0; e < n; ++e) sums[e][threadIdx.y][threadIdx.x] = sum[e];
  __syncthreads();
  if (threadIdx.y != 0 || !has_column) return;
  const auto total = [&](int e) { return sum_over_y<T>(sums[e]); };
  if (is_part) {
    Piece<T, std::conditional_t<n == 1, AnyType, T>, n> part;
    part.fill(total);
    part.store(p.parts, row_of_sum, col);
  } else {
    Piece<T, C, n> gradient;
    gradient.fill(total);
    gradient.store(p.grad_class_means, row_of_sum, col);
  }
}

// The gradients of class means whose classes are cut: blocks over cuts, of which the first through
// a class adds its parts up, and over stretches of columns; threads x along the columns, y over
// parts.
template <class T>
__global__ void __launch_bounds__(kColumns* kClassRows)
    add_parts_kernel(const __grid_constant__ ClassMeansArguments<T> p) {
  __shared__ T sums[kClassRows][kColumns];
  const int D = p.rows.D, stretches = (D + kColumns - 1) / kColumns;
  const int64_t cut = blockIdx.x / stretches, k = cut_class(p, cut);
  if (k < 0 || p.bounds[k] < row_of_cut(cut - 1)) return;
  const int64_t num_parts = (p.bounds[k + 1] - 1) / kRowsBetweenCuts - cut + 1;
  const int col = blockIdx.x % stretches * kColumns + threadIdx.x;
  const T* parts = reinterpret_cast<const T*>(p.parts.data) + col;
  T sum = 0;
#pragma unroll 8
  for (int64_t part = threadIdx.y; part < num_parts; part += kClassRows) {
    const int64_t row = part == 0 ? 2 * cut : 2 * (cut + part) - 1;
    if (col < D) sum += parts[row * D];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= D) return;
  store_element(p.grad_class_means.data, k * D + col, p.grad_class_means.dtype,
                sum_over_y<T>(sums));
}

}  // namespace ndfast::cuda
