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

// GCC 12 splits this in two where the processor has one instruction.
template <int n>
inline Vec<uint32_t, n> zero_extend(Vec<uint16_t, n> half) {
  return __builtin_convertvector(half, Vec<uint32_t, n>);
}

template <int n>
inline Vec<float, n> widen(Vec<uint16_t, n> half, bfloat16) {
  return bit_cast<Vec<float, n>>(zero_extend<n>(half) << 16);
}

template <int n>
inline Vec<uint16_t, n> narrow(Vec<float, n> value, bfloat16) {
  using Bits = Vec<uint32_t, n>;
  const Bits bits = bit_cast<Bits>(value);
  const Bits nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Rounding would turn some NaN into an infinity.
  const Bits result = value != value ? nearest_even * 0 + 0x7fc0 : nearest_even;
  return __builtin_convertvector(result, Vec<uint16_t, n>);
}

template <int n>
inline Vec<float, n> widen(Vec<uint16_t, n> half, float16) {
  using Bits = Vec<uint32_t, n>;
  const Bits bits = zero_extend<n>(half);
  const Bits rest = (bits & 0x7fff) << 13;
  // 2^112 moves the exponent's bias from float16's to float's, and normalises subnormals on its
  // way.
  const Bits finite = bit_cast<Bits>(bit_cast<Vec<float, n>>(rest) * 0x1p112f);
  const Bits magnitude = rest >= 0x0f800000 ? rest | 0x7f800000 : finite;
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
  const Bits finite = magnitude < 0x38800000 ? subnormal : normal;
  const Bits special = magnitude > 0x7f800000 ? finite * 0 + 0x7e00 : finite * 0 + 0x7c00;
  const Bits result = sign | (magnitude >= 0x477ff000 ? special : finite);
  return __builtin_convertvector(result, Vec<uint16_t, n>);
}

// The first `count` lanes, zeros after them.
template <class Row>
inline Row load_lanes(const void* p, int64_t count) {
  Row row = {};
  __builtin_memcpy(&row, p, count * sizeof(row[0]));
  return row;
}
template <class Row>
inline void store_lanes(void* p, Row row, int64_t count) {
  __builtin_memcpy(p, &row, count * sizeof(row[0]));
}

// By halves, so that the rounding error grows with the logarithm of the width.
template <class T, int n>
inline T sum_lanes(Vec<T, n> value) {
  if constexpr (n == 1) {
    return value[0];
  } else {
    Vec<T, n / 2> halves[2];
    __builtin_memcpy(halves, &value, sizeof(value));
    return sum_lanes<T, n / 2>(halves[0] + halves[1]);
  }
}

// One register's worth of T, to and from rows of type S.
template <class T, class S>
struct Access {
  static constexpr int n = NDFAST_BYTES / sizeof(T);
  using V = Vec<T, n>;
  static constexpr bool is_half = sizeof(S) == 2;

  using Row = Vec<std::conditional_t<is_half, uint16_t, S>, n>;

  static inline V from_row(Row row) {
    if constexpr (is_half) {
      return __builtin_convertvector(widen<n>(row, S{}), V);
    } else {
      return __builtin_convertvector(row, V);
    }
  }
  static inline V broadcast(T value) { return value - V{}; }  // -0 as well
  static inline V load(const S* p) {
    Row row;
    __builtin_memcpy(&row, p, sizeof(row));
    return from_row(row);
  }
  static inline V load(const S* p, int64_t count) { return from_row(load_lanes<Row>(p, count)); }

  static inline Row as_row(V value) {
    if constexpr (is_half) {
      return narrow<n>(__builtin_convertvector(value, Vec<float, n>), S{});
    } else {
      return __builtin_convertvector(value, Row);
    }
  }
  static inline void store(S* p, V value) {
    const Row row = as_row(value);
    __builtin_memcpy(p, &row, sizeof(row));
  }
  static inline void store(S* p, V value, int64_t count) {
    store_lanes<Row>(p, as_row(value), count);
  }
  // Past the caches, where there is such a store of this width; p is aligned to what is written.
  static inline void stream(S* p, V value) {
    [[maybe_unused]] const Row row = as_row(value);
#ifdef NDFAST_STREAM
    if constexpr (sizeof(row) == NDFAST_BYTES || sizeof(row) == NDFAST_BYTES / 2) {
      NDFAST_STREAM(p, bit_cast<Vec<uint32_t, sizeof(row) / 4>>(row));
      return;
    }
#endif
    store(p, value);
  }

  static inline T sum(V value) { return sum_lanes<T, n>(value); }
};

}  // namespace
}  // namespace ndfast::cpu::NDFAST_ISA
