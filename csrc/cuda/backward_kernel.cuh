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
  bool is_ignored;  // an ignored row: its gradient is 0 even where it holds NaN
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
              return by.is_ignored ? g[k][e] : g[k][e] + nd;
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
              return by.is_ignored ? T(0) : fma(by.alpha, s[k][e], by.delta * c[k].get(e, share));
            });
            if (col < pieces) gradient.store(p.grad_centres, i, col);
          }
        }
      }
    }
    if (p.grad_teacher.data) {
      const T upstream = upstream_of(p, i);
      const T gamma = upstream * p.coefficients[2 * p.N + i];
      const bool is_ignored = p.coefficients[i] == T(0) && p.coefficients[p.N + i] == T(0);
#pragma unroll 1
      for (int col = threadIdx.x; col < pieces; col += blockDim.x) {
        Piece<T, S, n> t, gradient;
        t.load(p.teacher, i, col, true);
        gradient.fill([&](int e) { return is_ignored ? T(0) : gamma * t[e]; });
        gradient.store(p.grad_teacher, i, col);
      }
    }
  }
}

// A class's rows in the order of labels, and the parts that they are cut in.
struct ClassRows {
  int64_t begin;
  int64_t end;

  __device__ __forceinline__ int64_t first_part() const { return begin / kPartRows; }
  __device__ __forceinline__ int64_t num_parts() const { return (end - begin) / kPartRows; }
  __device__ __forceinline__ bool is_cut() const { return num_parts() > 1; }
  // One of its parts; the first of a class that is not cut is all of it.
  __device__ __forceinline__ ClassRows part(int64_t number) const {
    const int64_t first = begin + (number - first_part()) * kPartRows;
    const bool is_last = number - first_part() + 1 >= num_parts();
    return {first, is_last ? end : first + kPartRows};
  }
};

inline constexpr int kColumns = 32, kClassRows = 8;

// The gradient of the class mean that rows share: blocks over stretches of columns of every class,
// or of its first part, and then of every other part; threads x along the columns, y over the rows.
// Sums are added in a fixed order, no atomics.
template <class T, class S, class C, bool kMix>
__global__ void __launch_bounds__(kColumns* kClassRows, 4)
    class_means_kernel(const __grid_constant__ ClassMeansArguments<T> p) {
  constexpr int n = kElements<S>;
  __shared__ T sums[kClassRows][kColumns][n];
  const BackwardArguments<T>& rows = p.rows;
  const int pieces = rows.D / n, stretches = (pieces + kColumns - 1) / kColumns;
  int64_t k = blockIdx.x / stretches, part = k - rows.centres.K + 1;
  const bool is_first_part = part <= 0;
  if (!is_first_part) {
    // The rows of another part, and those before it, have the label of its class. Most numbers are
    // of no part: two labels tell so at once.
    k = p.labels[part * kPartRows - 1];
    const int64_t same = p.labels[(part + 1) * kPartRows - 1];
    if (k != same || uint64_t(k) >= uint64_t(rows.centres.K)) return;
  }
  const ClassRows of_class{p.bounds[k], p.bounds[k + 1]};
  if (is_first_part) {
    part = of_class.first_part();
  } else if (part >= of_class.first_part() + of_class.num_parts()) {
    return;
  }
  const ClassRows of_part = of_class.part(part);
  const int col = blockIdx.x % stretches * kColumns + threadIdx.x;
  const bool has_column = col < pieces;
  T sum[n] = {};
  CentrePiece<T, C, n, kMix> c;
  if constexpr (!kMix) c.load(rows.centres, {k, k}, col, has_column);  // all rows' is the same
  // Rows that a thread reads at once. Where they come from is read a round ahead: all else waits
  // for it.
  constexpr int kRows = kMix ? 1 : 2;
  int64_t next[kRows];
  const auto is_row = [&](int64_t j, int r) { return j + r * kClassRows < of_part.end; };
  const auto read_next = [&](int64_t j) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) next[r] = is_row(j, r) ? p.order[j + r * kClassRows] : 0;
  };
  int64_t j = of_part.begin + threadIdx.y;
  read_next(j);
#pragma unroll 1
  for (; j < of_part.end; j += kRows * kClassRows) {
    bool is_first[kRows];
    int64_t i[kRows];
    Piece<T, S, n> s[kRows];
    ReadCoefficients<T> read[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      is_first[r] = next[r] < rows.N;
      i[r] = is_first[r] ? next[r] : next[r] - rows.N;
      s[r].load(rows.student, i[r], col, has_column && is_row(j, r));
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) read[r] = read_coefficients(rows, i[r], true);
    read_next(j + kRows * kClassRows);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      RowLabels labels{k, k};
      if constexpr (kMix) {
        labels = load_labels<kMix>(rows.centres, i[r], true);
        c.load(rows.centres, labels, col, has_column);
      }
      const T share = load_share<T, kMix>(rows.centres, i[r], true);
      const auto by =
          times_upstream(read[r], rows.grad_loss.dtype, are_classes<kMix>(rows.centres, labels));
      const T own_share = !kMix || is_first[r] ? share : T(1) - share;
      const bool adds = is_row(j, r) && !by.is_ignored;
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const T gradient = fma(by.alpha, s[r][e], by.delta * c.get(e, share));
        sum[e] += adds ? own_share * gradient : T(0);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < n; ++e) sums[threadIdx.y][threadIdx.x][e] = sum[e];
  __syncthreads();
  if (threadIdx.y != 0 || !has_column) return;
  const auto total = [&](int e) {
    T total = sums[0][threadIdx.x][e];
    for (int y = 1; y < kClassRows; ++y) total += sums[y][threadIdx.x][e];
    return total;
  };
  if (of_class.is_cut()) {
    Piece<T, std::conditional_t<n == 1, AnyType, T>, n> sum_of_part;
    sum_of_part.fill(total);
    sum_of_part.store(p.parts, part, col);
  } else {
    Piece<T, C, n> gradient;
    gradient.fill(total);
    gradient.store(p.grad_class_means, k, col);
  }
}

// Columns of a block of add_parts_kernel, and parts that a thread reads at once.
inline constexpr int kAddedColumns = 128, kAddedParts = 4;

// The gradient of classes that are cut, from the sums of their parts: blocks over stretches of
// columns for every two parts, of which at most one is the first of a class that is cut; threads as
// above.
template <class T>
__global__ void __launch_bounds__(kColumns* kClassRows)
    add_parts_kernel(const __grid_constant__ ClassMeansArguments<T> p) {
  constexpr int n = kAddedColumns / kColumns;
  __shared__ T sums[kClassRows][n][kColumns];
  const int D = p.rows.D, stretches = (D + kAddedColumns - 1) / kAddedColumns;
  // The class of the last label before the next two parts, if it begins in these.
  const int64_t begin = int64_t(blockIdx.x / stretches) * 2 * kPartRows;
  const int64_t k = p.labels[begin + 2 * kPartRows - 1];
  if (uint64_t(k) >= uint64_t(p.rows.centres.K)) return;
  const ClassRows of_class{p.bounds[k], p.bounds[k + 1]};
  if (of_class.begin < begin || !of_class.is_cut()) return;
  const int first_col = blockIdx.x % stretches * kAddedColumns + threadIdx.x;
  const T* parts = reinterpret_cast<const T*>(p.parts.data) + of_class.first_part() * D;
  const int64_t num_parts = of_class.num_parts();
  T sum[n] = {};
#pragma unroll 1
  for (int64_t part = threadIdx.y; part < num_parts; part += kAddedParts * kClassRows) {
    T read[kAddedParts][n];
#pragma unroll
    for (int i = 0; i < kAddedParts; ++i) {
      const int64_t row = part + i * kClassRows;
#pragma unroll
      for (int e = 0; e < n; ++e) {
        const int col = first_col + e * kColumns;
        read[i][e] = row < num_parts && col < D ? parts[row * D + col] : T(0);
      }
    }
#pragma unroll
    for (int i = 0; i < kAddedParts; ++i) {
#pragma unroll
      for (int e = 0; e < n; ++e) sum[e] += read[i][e];
    }
  }
#pragma unroll
  for (int e = 0; e < n; ++e) sums[threadIdx.y][e][threadIdx.x] = sum[e];
  __syncthreads();
  const int e = threadIdx.y, col = first_col + e * kColumns;
  if (e >= n || col >= D) return;
  T total = sums[0][e][threadIdx.x];
  for (int y = 1; y < kClassRows; ++y) total += sums[y][e][threadIdx.x];
  store_element(p.grad_class_means.data, k * D + col, p.grad_class_means.dtype, total);
}

}  // namespace ndfast::cuda
