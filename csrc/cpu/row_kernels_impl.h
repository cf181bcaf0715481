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

template <class T, class S, class Q>
RowSums<T> sums_of(const S* student, const Q* teacher, const T* centre, int64_t D) {
  using Student = Access<T, S>;
  using Teacher = Access<T, Q>;
  using Centre = Access<T, T>;
  constexpr int n = Student::n;
  // Two accumulators a sum: with four sums that is as many independent additions as the units take.
  typename Student::V ss[2] = {}, tt[2] = {}, cc[2] = {}, sc[2] = {};
  const auto add = [&](int u, auto s, auto c) {
    ss[u] += s * s;
    cc[u] += c * c;
    sc[u] += s * c;
  };
  int64_t i = 0;
  for (; i + 2 * n <= D; i += 2 * n) {
    for (int u = 0; u < 2; ++u) {
      add(u, Student::load(student + i + u * n), Centre::load(centre + i + u * n));
    }
    if (teacher) {
      for (int u = 0; u < 2; ++u) {
        const auto t = Teacher::load(teacher + i + u * n);
        tt[u] += t * t;
      }
    }
  }
  for (; i < D; i += n) {
    const int64_t count = D - i < n ? D - i : n;
    add(0, Student::load(student + i, count), Centre::load(centre + i, count));
    if (teacher) {
      const auto t = Teacher::load(teacher + i, count);
      tt[0] += t * t;
    }
  }
  return {Student::sum(ss[0] + ss[1]), Student::sum(tt[0] + tt[1]), Student::sum(cc[0] + cc[1]),
          Student::sum(sc[0] + sc[1])};
}

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
  return with_student_type<T>(student.dtype, [&](auto* s) {
    return with_type<T>(teacher.dtype, [&](auto* t) {
      return sums_of<T>(static_cast<decltype(s)>(const_cast<void*>(student.data)),
                        static_cast<decltype(t)>(const_cast<void*>(teacher.data)), centre, D);
    });
  });
}

template <class T, class O, class S>
void combine_as(O* out, const T* centre, const S* student, T x, T y, int64_t D, bool stream) {
  using Out = Access<T, O>;
  constexpr int n = Out::n;
  int64_t i = 0;
  const auto at = [&](int64_t i) {
    return x * Access<T, T>::load(centre + i) + y * Access<T, S>::load(student + i);
  };
  if (stream && reinterpret_cast<uintptr_t>(out) % (n * sizeof(O)) == 0) {
    for (; i + n <= D; i += n) Out::stream(out + i, at(i));
  } else {
    for (; i + n <= D; i += n) Out::store(out + i, at(i));
  }
  if (i < D) {
    const int64_t count = D - i;
    Out::store(
        out + i,
        x * Access<T, T>::load(centre + i, count) + y * Access<T, S>::load(student + i, count),
        count);
  }
}

template <class T>
void combine(Row out, const T* centre, ConstRow student, T x, T y, int64_t D, bool stream) {
  with_type<T>(out.dtype, [&](auto* o) {
    with_student_type<T>(student.dtype, [&](auto* s) {
      combine_as<T>(static_cast<decltype(o)>(out.data), centre,
                    static_cast<decltype(s)>(const_cast<void*>(student.data)), x, y, D, stream);
    });
  });
}

template <class T>
void accumulate(T* out, const T* centre, ConstRow student, T x, T y, int64_t D) {
  using Sum = Access<T, T>;
  with_student_type<T>(student.dtype, [&](auto* type) {
    const auto* s = static_cast<decltype(type)>(const_cast<void*>(student.data));
    using Student = Access<T, std::remove_const_t<std::remove_pointer_t<decltype(s)>>>;
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

template <class T, class O, class S>
void scale_as(O* out, const S* row, T x, int64_t D) {
  constexpr int n = Access<T, S>::n;
  int64_t i = 0;
  for (; i + n <= D; i += n) Access<T, O>::store(out + i, x * Access<T, S>::load(row + i));
  if (i < D) Access<T, O>::store(out + i, x * Access<T, S>::load(row + i, D - i), D - i);
}

template <class T>
void scale(Row out, ConstRow row, T x, int64_t D) {
  with_type<T>(out.dtype, [&](auto* o) {
    with_type<T>(row.dtype, [&](auto* r) {
      scale_as<T>(static_cast<decltype(o)>(out.data),
                  static_cast<decltype(r)>(const_cast<void*>(row.data)), x, D);
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
