// Vectors of the sums' type T and their loads and stores from every type of row. Included
// once for each instruction set, with internal linkage; see row_kernels_impl.h.

namespace ndfast::cpu::NDFAST_ISA {
namespace {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// n lanes; the compiler splits what is wider than a register.
template <class Lane, int n>
struct Lanes {
  typedef Lane type __attribute__((vector_size(sizeof(Lane) * n)));
};
template <class Lane, int n>
using Vec = typename Lanes<Lane, n>::type;

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V, class M>
inline V select(M mask, V yes, V no) {
  return (bit_cast<V>(mask) & yes) | (~bit_cast<V>(mask) & no);
}

template <int n>
inline Vec<float, n> widen(Vec<uint16_t, n> half, bfloat16) {
  return bit_cast<Vec<float, n>>(__builtin_convertvector(half, Vec<uint32_t, n>) << 16);
}

template <int n>
inline Vec<uint16_t, n> narrow(Vec<float, n> value, bfloat16) {
  using Bits = Vec<uint32_t, n>;
  const Bits bits = bit_cast<Bits>(value);
  const Bits nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Rounding would turn some NaN into an infinity.
  const Bits result = select(value != value, nearest_even * 0 + 0x7fc0, nearest_even);
  return __builtin_convertvector(result, Vec<uint16_t, n>);
}

template <int n>
inline Vec<float, n> widen(Vec<uint16_t, n> half, float16) {
  using Bits = Vec<uint32_t, n>;
  const Bits bits = __builtin_convertvector(half, Bits);
  const Bits rest = (bits & 0x7fff) << 13;
  // 2^112 moves the exponent's bias from float16's to float's, and normalises subnormals on its
  // way.
  const Bits finite = bit_cast<Bits>(bit_cast<Vec<float, n>>(rest) * 0x1p112f);
  const Bits magnitude = select(rest >= 0x0f800000, rest | 0x7f800000, finite);
  return bit_cast<Vec<float, n>>(magnitude | (bits & 0x8000) << 16);
}

template <int n>
inline Vec<uint16_t, n> narrow(Vec<float, n> value, float16) {
  using Bits = Vec<uint32_t, n>;
  const Bits bits = bit_cast<Bits>(value);
  const Bits sign = (bits >> 16) & 0x8000;
  const Bits magnitude = bits & 0x7fffffff;
  // Below 2^-14 float16 is subnormal: adding 0.5 leaves its 10 bits, rounded, at the end.
  const Bits subnormal = bit_cast<Bits>(bit_cast<Vec<float, n>>(magnitude) + 0.5f) - 0x3f000000;
  const Bits normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Bits finite = select(magnitude < 0x38800000, subnormal, normal);
  const Bits special = select(magnitude > 0x7f800000, finite * 0 + 0x7e00, finite * 0 + 0x7c00);
  const Bits result = sign | select(magnitude >= 0x477ff000, special, finite);
  return __builtin_convertvector(result, Vec<uint16_t, n>);
}

// One register's worth of T, to and from rows of type S.
template <class T, class S>
struct Access {
  static constexpr int n = NDFAST_BYTES / sizeof(T);
  using V = Vec<T, n>;
  static constexpr bool is_half = sizeof(S) == 2;

  static inline V from_memory(const void* p) {
    if constexpr (is_half) {
      Vec<uint16_t, n> half;
      __builtin_memcpy(&half, p, sizeof(half));
      return __builtin_convertvector(widen<n>(half, S{}), V);
    } else {
      Vec<S, n> row;
      __builtin_memcpy(&row, p, sizeof(row));
      return __builtin_convertvector(row, V);
    }
  }
  static inline V load(const S* p) { return from_memory(p); }
  // The first `count` lanes, zeros after them.
  static inline V load(const S* p, int64_t count) {
    S padded[n] = {};
    __builtin_memcpy(padded, p, count * sizeof(S));
    return from_memory(padded);
  }

  static inline auto as_row(V value) {
    if constexpr (is_half) {
      return narrow<n>(__builtin_convertvector(value, Vec<float, n>), S{});
    } else {
      return __builtin_convertvector(value, Vec<S, n>);
    }
  }
  static inline void store(S* p, V value) {
    const auto row = as_row(value);
    __builtin_memcpy(p, &row, sizeof(row));
  }
  static inline void store(S* p, V value, int64_t count) {
    const auto row = as_row(value);
    __builtin_memcpy(p, &row, count * sizeof(S));
  }
  // Past the caches, where there is such a store of this width; p is aligned to what is written.
  static inline void stream(S* p, V value) {
    [[maybe_unused]] const auto row = as_row(value);
#ifdef NDFAST_STREAM
    if constexpr (sizeof(row) == NDFAST_BYTES || sizeof(row) == NDFAST_BYTES / 2) {
      NDFAST_STREAM(p, bit_cast<Vec<uint32_t, sizeof(row) / 4>>(row));
      return;
    }
#endif
    store(p, value);
  }

  static inline T sum(V value) {
    // Halves, so that the rounding error grows with the logarithm of the width.
    T lanes[n];
    __builtin_memcpy(lanes, &value, sizeof(value));
    for (int half = n / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }
};

}  // namespace
}  // namespace ndfast::cpu::NDFAST_ISA
