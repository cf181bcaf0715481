// The backward kernel: gradients from the rows' coefficients. Rows are independent, nothing is
// summed over their elements.
#pragma once

#include "rows.cuh"

namespace ndfast::cuda {

template <class T>
__device__ __forceinline__ T upstream_of(const BackwardArguments<T>& p, uint32_t i) {
  return p.grad_loss[i * p.grad_loss_stride] * *p.scale;
}

// A row's coefficients, times its upstream gradient.
template <class T>
struct Coefficients {
  T alpha;
  T beta;
  T delta;
  bool is_ignored;  // an ignored row: its gradient is 0 even where it holds NaN
};

// A row's coefficients and its upstream gradient as they lie in memory: asked for with the row, and
// nothing is made of them before its label has come, for that would wait.
template <class T>
struct ReadCoefficients {
  T alpha;
  T beta;
  T delta;
  T scale;
  T grad_loss;

  __device__ __forceinline__ Coefficients<T> times_upstream(bool in_range) const {
    const T upstream = grad_loss * scale;
    // A label that is no class has the centre NaN.
    return {in_range ? upstream * alpha : T(NAN), upstream * beta, upstream * delta,
            alpha == T(0) && beta == T(0)};
  }
};

template <class T>
__device__ __forceinline__ ReadCoefficients<T> read_coefficients(const BackwardArguments<T>& p,
                                                                 uint32_t i, bool of_centre) {
  const T* of_row = p.coefficients + i;
  return {of_row[0], of_row[p.N], of_centre ? of_row[3 * int64_t(p.N)] : T(0), *p.scale,
          p.grad_loss[i * p.grad_loss_stride]};
}

inline constexpr int kBackwardThreads = 256;

// Threads of a block: x along a row, y over rows. In a round a thread takes kPieces pieces, all
// read before the first is written.
template <class T, class S, class C, int kPieces, bool kMix>
__global__ void __launch_bounds__(kBackwardThreads, kMix&& kPieces > 1 ? 3 : 4)
    backward_kernel(const __grid_constant__ BackwardArguments<T> p) {
  constexpr int n = kElements<S>;
  if (p.is_finished && p.grad_loss_stride == 0 && upstream_of(p, 0) == p.written_for) return;
  const int pieces = p.D / n;
  const uint32_t N = p.N, step = gridDim.x * blockDim.y;
  for (uint32_t i = blockIdx.x * blockDim.y + threadIdx.y; i < N; i += step) {
    if (p.is_finished && p.grad_loss_stride != 0 && upstream_of(p, i) == p.written_for) continue;
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
        const RowLabels labels = load_labels<kMix>(p.centres, i);
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int col = begin + k * blockDim.x;
          c[k].load(p.centres, labels, col, col < pieces);
        }
        const T share = load_share<T, kMix>(p.centres, i);
        const auto by = read.times_upstream(are_classes<kMix>(p.centres, labels));
        if (p.grad_student.data) {
          const auto write = [&](auto is_sum) {
#pragma unroll
            for (int k = 0; k < kPieces; ++k) {
              const int col = begin + k * blockDim.x;
              Piece<T, S, n> gradient;
              gradient.fill([&](int e) {
                const T nd = fma(by.alpha, c[k].get(e, share), by.beta * s[k][e]);
                const T addend = is_sum ? g[k][e] : T(0);
                return by.is_ignored ? addend : is_sum ? addend + nd : nd;
              });
              if (col < pieces) gradient.store(p.grad_student, i, col);
            }
          };
          // Apart, for 0 + nd is another zero where nd is -0.
          if (p.grad_features.data) {
            write(std::true_type());
          } else {
            write(std::false_type());
          }
        }
        if (p.grad_centres.data) {
#pragma unroll
          for (int k = 0; k < kPieces; ++k) {
            const int col = begin + k * blockDim.x;
            Piece<T, std::conditional_t<n == 1, AnyType, T>, n> gradient;
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
      const T gamma = upstream * p.coefficients[2 * int64_t(p.N) + i];
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

}  // namespace ndfast::cuda
