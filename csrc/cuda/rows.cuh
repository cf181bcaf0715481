// A row's labels, and pieces of its centre.
#pragma once

#include <type_traits>

#include "pieces.cuh"

namespace ndfast::cuda {

__device__ __forceinline__ int64_t load_label(const Labels& labels, int64_t i) {
  switch (labels.dtype) {
    case LabelDtype::int32: return static_cast<const int32_t*>(labels.data)[i * labels.stride];
    case LabelDtype::uint8: return static_cast<const uint8_t*>(labels.data)[i * labels.stride];
    case LabelDtype::int64: break;
  }
  return static_cast<const int64_t*>(labels.data)[i * labels.stride];
}

// A row's labels as they were read: nothing is made of them before the row's own loads are on their
// way, for that would wait. -1 for a row that is not in the batch, the row's number without labels.
struct RowLabels {
  int64_t first;
  int64_t second;  // of mixed labels
};

template <bool kMix>
__device__ __forceinline__ RowLabels load_labels(const Centres& centres, int64_t row, bool valid) {
  if (!valid) return {-1, -1};
  if (!centres.target.data) return {row, row};
  const int64_t first = load_label(centres.target, row);
  return {first, kMix ? load_label(centres.target_b, row) : first};
}

// Whether they are classes; nothing is read where they are not.
template <bool kMix>
__device__ __forceinline__ bool are_classes(const Centres& centres, const RowLabels& labels) {
  const bool first = uint64_t(labels.first) < uint64_t(centres.K);
  return kMix ? first && uint64_t(labels.second) < uint64_t(centres.K) : first;
}

template <bool kMix>
__device__ __forceinline__ bool are_ignored(const Centres& centres, const RowLabels& labels,
                                            int64_t ignore_index) {
  return centres.target.data &&
         (labels.first == ignore_index || (kMix && labels.second == ignore_index));
}

// The share of a row's first label.
template <class T, bool kMix>
__device__ __forceinline__ T load_share(const Centres& centres, int64_t row, bool valid) {
  return kMix && valid ? value_or(centres.lam, row, T(centres.lam_scalar)) : T(1);
}

// A piece of a centre: as it lies in memory, or of two class means mixed.
template <class T, class C, int n, bool kMix>
class CentrePiece {
 public:
  __device__ __forceinline__ void load(const Centres& centres, const RowLabels& labels, int col,
                                       bool valid) {
    valid = valid && are_classes<kMix>(centres, labels);
    first_.template load<Keep::kInL1>(centres.class_means, labels.first, col, valid);
    if constexpr (kMix) {
      second_.template load<Keep::kInL1>(centres.class_means, labels.second, col, valid);
    }
  }
  // Its i-th element. One rounding is left out here, not where the compiler likes: forward and
  // backward must have the same centre, for where two class means all but cancel another rounding
  // is another direction.
  __device__ __forceinline__ T get(int i, T share) const {
    if constexpr (kMix) {
      return fma(share, first_[i], (T(1) - share) * second_[i]);
    } else {
      return first_[i];
    }
  }

 private:
  struct Nothing {};
  Piece<T, C, n> first_;
  std::conditional_t<kMix, Piece<T, C, n>, Nothing> second_;
};

}  // namespace ndfast::cuda
