// The passes of row_kernels.h, compiled once for each instruction set: a file that includes this
// first sets the target and defines
//   NDFAST_ISA    the namespace, and
//   NDFAST_BYTES  the width of a vector register.
// Everything here has internal linkage. A function shared between these files would be compiled for
// one of the instruction sets, and the linker would choose which; that is also why this includes
// nothing that defines inline functions beyond what the including file had before its target.

namespace ndfast::cpu::NDFAST_ISA {
namespace {

template <class T>
struct Vector {
  static constexpr int64_t size = NDFAST_BYTES / sizeof(T);
  typedef T type __attribute__((vector_size(NDFAST_BYTES)));

  static inline type load(const T* p) {
    type v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static inline T sum(type v) {
    // Halves, so that the rounding error grows with the logarithm of the width.
    T lanes[size];
    __builtin_memcpy(lanes, &v, sizeof(v));
    for (int64_t half = size / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }
};

template <class T, bool HasTeacher>
RowSums<T> sums_of(const T* student, const T* teacher, const T* centre, int64_t D) {
  using V = Vector<T>;
  // Two accumulators a sum: with four sums that is as many independent additions as the units take.
  typename V::type ss[2] = {}, tt[2] = {}, cc[2] = {}, sc[2] = {};
  int64_t i = 0;
  for (; i + 2 * V::size <= D; i += 2 * V::size) {
    for (int u = 0; u < 2; ++u) {
      const auto s = V::load(student + i + u * V::size);
      const auto c = V::load(centre + i + u * V::size);
      ss[u] += s * s;
      cc[u] += c * c;
      sc[u] += s * c;
      if constexpr (HasTeacher) {
        const auto t = V::load(teacher + i + u * V::size);
        tt[u] += t * t;
      }
    }
  }
  RowSums<T> sums{V::sum(ss[0] + ss[1]), V::sum(tt[0] + tt[1]), V::sum(cc[0] + cc[1]),
                  V::sum(sc[0] + sc[1])};
  for (; i < D; ++i) {
    sums.student_squared += student[i] * student[i];
    sums.centre_squared += centre[i] * centre[i];
    sums.student_dot_centre += student[i] * centre[i];
    if constexpr (HasTeacher) sums.teacher_squared += teacher[i] * teacher[i];
  }
  return sums;
}

template <class T>
RowSums<T> sums(const T* student, const T* teacher, const T* centre, int64_t D) {
  return teacher ? sums_of<T, true>(student, teacher, centre, D)
                 : sums_of<T, false>(student, nullptr, centre, D);
}

template <class T>
void combine(T* __restrict out, const T* a, const T* b, T x, T y, int64_t D,
             [[maybe_unused]] bool stream) {
#ifdef NDFAST_STREAM
  if (stream && reinterpret_cast<uintptr_t>(out) % NDFAST_BYTES == 0) {
    using V = Vector<T>;
    int64_t i = 0;
    for (; i + V::size <= D; i += V::size) {
      NDFAST_STREAM(out + i, V::load(a + i) * x + V::load(b + i) * y);
    }
    for (; i < D; ++i) out[i] = x * a[i] + y * b[i];
    return;
  }
#endif
  for (int64_t i = 0; i < D; ++i) out[i] = x * a[i] + y * b[i];
}

template <class T>
void accumulate(T* __restrict out, const T* a, const T* b, T x, T y, int64_t D) {
  for (int64_t i = 0; i < D; ++i) out[i] += x * a[i] + y * b[i];
}

template <class T>
void scale(T* out, const T* a, T x, int64_t D) {
  for (int64_t i = 0; i < D; ++i) out[i] = x * a[i];
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float from_bfloat16(uint16_t half) { return float_of(uint32_t(half) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t nearest_even = bits + 0x7fff + ((bits >> 16) & 1);
  // Rounding would turn some NaN into an infinity.
  return uint16_t(value != value ? 0x7fc0 : nearest_even >> 16);
}

// float16 by integer arithmetic and two exact float products; vectorises on every target.
inline float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16;
  const uint32_t rest = uint32_t(half & 0x7fff) << 13;
  // 2^112 moves the exponent's bias from float16's to float's, and normalises subnormals on its
  // way.
  const float finite = float_of(rest) * 0x1p112f;
  const uint32_t bits = rest >= 0x0f800000 ? rest | 0x7f800000 : bits_of(finite);
  return float_of(bits | sign);
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Below 2^-14 float16 is subnormal: adding 0.5 leaves its 10 bits, rounded, at the end.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const uint32_t infinite_or_nan = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return uint16_t(sign | (magnitude >= 0x477ff000 ? infinite_or_nan : finite));
}

template <class T>
void load(T* __restrict out, const void* row, Dtype dtype, int64_t D) {
  const auto* halves = static_cast<const uint16_t*>(row);
  switch (dtype) {
    case Dtype::float16:
      for (int64_t i = 0; i < D; ++i) out[i] = from_float16(halves[i]);
      break;
    case Dtype::bfloat16:
      for (int64_t i = 0; i < D; ++i) out[i] = from_bfloat16(halves[i]);
      break;
    case Dtype::float32:
      for (int64_t i = 0; i < D; ++i) out[i] = T(static_cast<const float*>(row)[i]);
      break;
    case Dtype::float64:
      for (int64_t i = 0; i < D; ++i) out[i] = T(static_cast<const double*>(row)[i]);
      break;
  }
}

template <class T>
void store(void* row, Dtype dtype, const T* __restrict values, int64_t D) {
  auto* halves = static_cast<uint16_t*>(row);
  switch (dtype) {
    case Dtype::float16:
      for (int64_t i = 0; i < D; ++i) halves[i] = to_float16(float(values[i]));
      break;
    case Dtype::bfloat16:
      for (int64_t i = 0; i < D; ++i) halves[i] = to_bfloat16(float(values[i]));
      break;
    case Dtype::float32:
      for (int64_t i = 0; i < D; ++i) static_cast<float*>(row)[i] = float(values[i]);
      break;
    case Dtype::float64:
      for (int64_t i = 0; i < D; ++i) static_cast<double*>(row)[i] = double(values[i]);
      break;
  }
}

void fence() {
#ifdef NDFAST_STREAM
  __builtin_ia32_sfence();
#endif
}

}  // namespace

template <class T>
const RowKernels<T>& kernels() {
  static constexpr RowKernels<T> table{sums<T>, combine<T>, accumulate<T>, scale<T>,
                                       load<T>, store<T>,   fence};
  return table;
}
template const RowKernels<float>& kernels<float>();
template const RowKernels<double>& kernels<double>();

}  // namespace ndfast::cpu::NDFAST_ISA
