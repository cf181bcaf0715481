// A row's labels, and pieces of its centre.
#pragma once

#include <cstring>
#include <type_traits>

#include "pieces.cuh"

namespace ndfast::cuda {

// A label as it was read: nothing is made of it before the row's own loads are on their way, for
// that would wait.
struct LabelBits {
  uint32_t low = ~0u;   // of int64
  uint32_t high = ~0u;  // of int64
  uint32_t other = ~0u;
};

__device__ __forceinline__ LabelBits read_label(const Labels& labels, uint32_t row, bool valid) {
  LabelBits bits;
  if (valid && labels.dtype == LabelDtype::none) bits.other = row;
  const char* p = labels.data + int64_t(row) * labels.stride_bytes;
#ifdef __CUDA_ARCH__
  // One of three, by predicates: branches are dearer. int64 into registers of its own, for a load
  // waits until what is on its way to its register has come, even where that is nothing.
  asm volatile(
      "{\n .reg .pred q, r8, r4, r1;\n setp.ne.b32 q, %5, 0;\n"
      " setp.eq.s32 r8, %4, %6;\n and.pred r8, r8, q;\n"
      " setp.eq.s32 r4, %4, %7;\n and.pred r4, r4, q;\n"
      " setp.eq.s32 r1, %4, %8;\n and.pred r1, r1, q;\n"
      " @r8 ld.global.v2.b32 {%0, %1}, [%3];\n @r4 ld.global.b32 %2, [%3];\n"
      " @r1 ld.global.u8 %2, [%3];\n}"
      : "+r"(bits.low), "+r"(bits.high), "+r"(bits.other)
      : "l"(p), "r"(int(labels.dtype)), "r"(int(valid)), "n"(int(LabelDtype::int64)),
        "n"(int(LabelDtype::int32)), "n"(int(LabelDtype::uint8)));
#else
  if (valid && labels.dtype == LabelDtype::int64) {
    std::memcpy(&bits.low, p, 4);
    std::memcpy(&bits.high, p + 4, 4);
  }
  if (valid && labels.dtype == LabelDtype::int32) std::memcpy(&bits.other, p, 4);
  if (valid && labels.dtype == LabelDtype::uint8) bits.other = static_cast<unsigned char>(*p);
#endif
  return bits;
}

__device__ __forceinline__ int64_t label_of(const LabelBits& bits, LabelDtype dtype) {
  const bool is_wide = dtype == LabelDtype::int64;
  const uint32_t sign = dtype == LabelDtype::int32 ? uint32_t(int32_t(bits.other) >> 31) : 0;
  const uint32_t low = is_wide ? bits.low : bits.other, high = is_wide ? bits.high : sign;
  return static_cast<int64_t>(uint64_t(high) << 32 | low);
}

struct RowLabelBits {
  LabelBits first;
  LabelBits second;  // of mixed labels
};
struct RowLabels {
  int64_t first;
  int64_t second;
};

template <bool kMix>
__device__ __forceinline__ RowLabelBits read_labels(const Centres& centres, uint32_t row,
                                                    bool valid) {
  const LabelBits first = read_label(centres.target, row, valid);
  return {first, kMix ? read_label(centres.target_b, row, valid) : first};
}

template <bool kMix>
__device__ __forceinline__ RowLabels labels_of(const Centres& centres, const RowLabelBits& bits) {
  const int64_t first = label_of(bits.first, centres.target.dtype);
  return {first, kMix ? label_of(bits.second, centres.target_b.dtype) : first};
}

// A row's labels where they are needed at once. By branches, behind which the compiler leaves what
// is loaded before them: it would move these loads to the front, and the row's own would wait.
__device__ __forceinline__ int64_t load_label(const Labels& labels, uint32_t row) {
  const char* p = labels.data + int64_t(row) * labels.stride_bytes;
  switch (labels.dtype) {
    case LabelDtype::none: return row;
    case LabelDtype::int32: return *reinterpret_cast<const int32_t*>(p);
    case LabelDtype::uint8: return *reinterpret_cast<const uint8_t*>(p);
    case LabelDtype::int64: break;
  }
  return *reinterpret_cast<const int64_t*>(p);
}

// The bits that label_of() makes this label of.
__device__ __forceinline__ LabelBits bits_of(int64_t label) {
  return {uint32_t(label), uint32_t(uint64_t(label) >> 32), uint32_t(label)};
}

template <bool kMix>
__device__ __forceinline__ RowLabels load_labels(const Centres& centres, uint32_t row) {
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
  return centres.target.dtype != LabelDtype::none &&
         (labels.first == ignore_index || (kMix && labels.second == ignore_index));
}

// The share of a row's first label.
template <class T, bool kMix>
__device__ __forceinline__ T load_share(const Centres& centres, uint32_t row) {
  return kMix ? value_or(centres.lam, row, T(centres.lam_scalar)) : T(1);
}

// Where a thread's first pieces of a row's class means lie; nothing is read there where labels are
// no classes.
struct CentreRows {
  const char* first;
  const char* second;  // of mixed labels
  bool are_there;
};

template <bool kMix>
__device__ __forceinline__ CentreRows rows_of(const Centres& centres, const RowLabels& labels,
                                              int offset) {
  return {row_of(centres.class_means, labels.first, offset),
          kMix ? row_of(centres.class_means, labels.second, offset) : nullptr,
          are_classes<kMix>(centres, labels)};
}

// A piece of a centre: as it lies in memory, or of two class means mixed.
template <class T, class C, int n, bool kMix>
class CentrePiece {
 public:
  static constexpr int kBytes = Piece<T, C, n>::kBytes;

  // Keeps what it holds, zeros at first, where `valid` is off.
  __device__ __forceinline__ void load(const CentreRows& rows, int offset, bool valid) {
    first_.template load<Keep::kInL1>(rows.first + offset, valid && rows.are_there);
    if constexpr (kMix) {
      second_.template load<Keep::kInL1>(rows.second + offset, valid && rows.are_there);
    }
  }
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
