// The passes of row_kernels.h, compiled once for each instruction set: a file that includes this
// first sets the target and defines
//   NDFAST_ISA    the namespace,
//   NDFAST_BYTES  the width of a vector register, and, where there is one,
//   NDFAST_STREAM a store past the caches;
// then includes vectors.h and says how else it widens and narrows float16.
// Everything here has internal linkage. A function shared between these files would be compiled for
// one of the instruction sets, and the linker would choose which; that is also why this includes
// nothing that defines inline functions beyond what the including file had before its target.
namespace ndfast::cpu::NDFAST_ISA {
namespace {

// Calls f with a null pointer of the row's type.
template <class T, class F>
inline auto with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float16: return f(static_cast<float16*>(nullptr));
    case Dtype::bfloat16: return f(static_cast<bfloat16*>(nullptr));
    case Dtype::float64: return f(static_cast<double*>(nullptr));
    case Dtype::float32: break;
  }
  return f(static_cast<float*>(nullptr));
}

// Writes a combination piece by piece.
template <class T, class O, class S, bool HasAddend = false>
struct Combiner {
  using Out = Access<T, O>;

  explicit Combiner(const Combination<T>& c)
      : out(static_cast<O*>(c.out.data)),
        centre(c.centre),
        student(static_cast<const S*>(c.student.data)),
        addend(static_cast<const S*>(c.addend)),
        x(c.x),
        y(c.y),
        stream(c.stream) {
    for (int k = 0; k < 3; ++k) {
      const ConstRow& row = c.ahead[k];
      const int64_t bytes = with_type<T>(row.dtype, [](auto* type) { return sizeof(*type); });
      // No row: the centre's first element again and again, which costs nothing.
      ahead[k] = static_cast<const char*>(row.data ? row.data : c.centre);
      ahead_bytes[k] = row.data ? bytes : 0;
    }
  }

  // The elements before the first that a whole register may be streamed to.
  int64_t head(int64_t D) const {
    constexpr uintptr_t width = Out::n * sizeof(O);
    const auto past = reinterpret_cast<uintptr_t>(out) % width;
    const int64_t head = stream && past ? (width - past) / sizeof(O) : 0;
    return head < D ? head : D;
  }

  inline void write(int64_t i) const {
    for (int k = 0; k < 3; ++k) __builtin_prefetch(ahead[k] + i * ahead_bytes[k], 0, 2);
    auto value = x * Access<T, T>::load(centre + i) + y * Access<T, S>::load(student + i);
    if constexpr (HasAddend) value += Access<T, S>::load(addend + i);
    if (stream) {
      Out::stream(out + i, value);
    } else {
      Out::store(out + i, value);
    }
  }
  inline void write(int64_t i, int64_t count) const {
    const auto c = Access<T, T>::load(centre + i, count);
    auto value = x * c + y * Access<T, S>::load(student + i, count);
    if constexpr (HasAddend) value += Access<T, S>::load(addend + i, count);
    Out::store(out + i, value, count);
  }

  O* out;
  const T* centre;
  const S* student;
  const S* addend;
  const char* ahead[3];
  int64_t ahead_bytes[3];
  T x;
  T y;
  bool stream;
};

template <class T, class S, class Q, bool HasTeacher>
RowSums<T> sums_of(const S* student, const Q* teacher, const T* centre, int64_t D) {
  using Student = Access<T, S>;
  using Teacher = Access<T, Q>;
  using Centre = Access<T, T>;
  constexpr int n = Student::n;
  RowSums<T> total{0, 0, 0, 0};
  // A lane adds at most kBlock / 8 products up before they are folded: rounding errors of many
  // equal terms do not cancel, and D = 16,384 would leave 1e-5 behind on the narrowest registers.
  constexpr int64_t kBlock = 4096;
  for (int64_t begin = 0; begin < D; begin += kBlock) {
    const int64_t end = D - begin < kBlock ? D : begin + kBlock;
    // Two accumulators a sum: with four sums as many independent additions as the units take.
    typename Student::V ss[2] = {}, tt[2] = {}, cc[2] = {}, sc[2] = {};
    const auto add = [&](int u, auto s, auto c) {
      ss[u] += s * s;
      cc[u] += c * c;
      sc[u] += s * c;
    };
    int64_t i = begin;
    for (; i + 2 * n <= end; i += 2 * n) {
      for (int u = 0; u < 2; ++u) {
        const int64_t at = i + u * n;
        add(u, Student::load(student + at), Centre::load(centre + at));
        if constexpr (HasTeacher) {
          const auto t = Teacher::load(teacher + at);
          tt[u] += t * t;
        }
      }
    }
    for (; i < end; i += n) {
      const int64_t count = end - i < n ? end - i : n;
      add(0, Student::load(student + i, count), Centre::load(centre + i, count));
      if constexpr (HasTeacher) {
        const auto t = Teacher::load(teacher + i, count);
        tt[0] += t * t;
      }
    }
    total.student_squared += Student::sum(ss[0] + ss[1]);
    total.teacher_squared += Student::sum(tt[0] + tt[1]);
    total.centre_squared += Student::sum(cc[0] + cc[1]);
    total.student_dot_centre += Student::sum(sc[0] + sc[1]);
  }
  return total;
}

// The same for a student, which is float64 exactly where T is double.
template <class T, class F>
inline auto with_student_type(Dtype dtype, const F& f) {
  if constexpr (sizeof(T) == 8) {
    return f(static_cast<double*>(nullptr));
  } else {
    if (dtype == Dtype::float16) return f(static_cast<float16*>(nullptr));
    if (dtype == Dtype::bfloat16) return f(static_cast<bfloat16*>(nullptr));
    return f(static_cast<float*>(nullptr));
  }
}

template <class T>
RowSums<T> sums(ConstRow student, ConstRow teacher, const T* centre, int64_t D) {
  return with_student_type<T>(student.dtype, [&](auto* type_s) {
    using S = std::remove_pointer_t<decltype(type_s)>;
    const S* s = static_cast<const S*>(student.data);
    if (!teacher.data) return sums_of<T, S, S, false>(s, nullptr, centre, D);
    return with_type<T>(teacher.dtype, [&](auto* type_t) {
      using Q = std::remove_pointer_t<decltype(type_t)>;
      return sums_of<T, S, Q, true>(s, static_cast<const Q*>(teacher.data), centre, D);
    });
  });
}

template <class T, class O, class S, bool HasAddend>
void combine_as(const Combination<T>& c, int64_t D) {
  const Combiner<T, O, S, HasAddend> combiner(c);
  constexpr int64_t n = Access<T, O>::n;
  int64_t i = combiner.head(D);
  if (i > 0) combiner.write(0, i);
  for (; i + n <= D; i += n) combiner.write(i);
  if (i < D) combiner.write(i, D - i);
}

template <class T>
void combine(const Combination<T>& c, int64_t D) {
  with_student_type<T>(c.student.dtype, [&](auto* type_s) {
    using S = std::remove_pointer_t<decltype(type_s)>;
    if (c.addend) return combine_as<T, S, S, true>(c, D);
    with_type<T>(c.out.dtype, [&](auto* type_o) {
      using O = std::remove_pointer_t<decltype(type_o)>;
      combine_as<T, O, S, false>(c, D);
    });
  });
}

template <class T>
void accumulate(T* out, const T* centre, ConstRow student, T x, T y, int64_t D) {
  using Sum = Access<T, T>;
  with_student_type<T>(student.dtype, [&](auto* type_s) {
    using S = std::remove_pointer_t<decltype(type_s)>;
    using Student = Access<T, S>;
    const S* s = static_cast<const S*>(student.data);
    int64_t i = 0;
    for (; i + Sum::n <= D; i += Sum::n) {
      Sum::store(out + i,
                 Sum::load(out + i) + x * Sum::load(centre + i) + y * Student::load(s + i));
    }
    if (i < D) {
      const int64_t count = D - i;
      Sum::store(out + i,
                 Sum::load(out + i, count) + x * Sum::load(centre + i, count) +
                     y * Student::load(s + i, count),
                 count);
    }
  });
}

template <class T>
void scale(Row out, ConstRow row, T x, int64_t D) {
  with_type<T>(out.dtype, [&](auto* type_o) {
    with_type<T>(row.dtype, [&](auto* type_s) {
      using O = std::remove_pointer_t<decltype(type_o)>;
      using S = std::remove_pointer_t<decltype(type_s)>;
      O* o = static_cast<O*>(out.data);
      const S* s = static_cast<const S*>(row.data);
      constexpr int n = Access<T, S>::n;
      int64_t i = 0;
      for (; i + n <= D; i += n) Access<T, O>::store(o + i, x * Access<T, S>::load(s + i));
      if (i < D) Access<T, O>::store(o + i, x * Access<T, S>::load(s + i, D - i), D - i);
    });
  });
}

void fence() {
#ifdef NDFAST_STREAM
  __builtin_ia32_sfence();
#endif
}

}  // namespace

template <class T>
const RowKernels<T>& kernels() {
  static constexpr RowKernels<T> table{sums<T>, combine<T>, accumulate<T>, scale<T>, fence};
  return table;
}
template const RowKernels<float>& kernels<float>();
template const RowKernels<double>& kernels<double>();

}  // namespace ndfast::cpu::NDFAST_ISA
