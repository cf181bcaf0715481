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

// A row's labels, with no centre for a row that is not `valid`, i.e. behind the last.
struct RowLabels {
  int32_t first;
  int32_t second;  // of mixed labels
  bool in_range;   // both are classes; nothing is read where they are not
  bool is_ignored;
};

template <bool kMix>
__device__ __forceinline__ RowLabels load_labels(const Centres& centres, int64_t row, bool valid,
                                                 int64_t ignore_index) {
  RowLabels labels{0, 0, valid, false};
  if (!valid || !centres.target.data) return labels;
  const int64_t first = load_label(centres.target, row);
  labels.first = static_cast<int32_t>(first);
  labels.in_range = uint64_t(first) < uint64_t(centres.K);
  labels.is_ignored = first == ignore_index;
  if constexpr (kMix) {
    const int64_t second = load_label(centres.target_b, row);
    labels.second = static_cast<int32_t>(second);
    labels.in_range = labels.in_range && uint64_t(second) < uint64_t(centres.K);
    labels.is_ignored = labels.is_ignored || second == ignore_index;
  }
  return labels;
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
  __device__ __forceinline__ void load(const Centres& centres, int64_t row, const RowLabels& labels,
                                       int col, bool valid) {
    valid = valid && labels.in_range;
    const int64_t first = centres.target.data ? labels.first : row;
    first_.template load<Keep::kInL1>(centres.class_means, first, col, valid);
    if constexpr (kMix) {
      second_.template load<Keep::kInL1>(centres.class_means, labels.second, col, valid);
    }
  }
  // Its i-th element.
  __device__ __forceinline__ T get(int i, T share) const {
    if constexpr (kMix) {
      return share * first_[i] + (T(1) - share) * second_[i];
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
