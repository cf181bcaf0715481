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

// Writes a combination, a register at a time. AlwaysStreams: past the caches, whatever it says.
template <class T, class O, class S, class C, bool HasAddend = false, bool AlwaysStreams = false>
class Combiner {
 public:
  Combiner(const Combination<T>& c, int64_t D)
      : out_(static_cast<O*>(c.out.data)),
        centre_(static_cast<const C*>(c.centre.data)),
        student_(static_cast<const S*>(c.student.data)),
        addend_(static_cast<const S*>(c.addend)),
        x_(Out::broadcast(c.x)),
        y_(Out::broadcast(c.y)),
        stream_(AlwaysStreams || c.stream),
        D_(D) {
    // The elements before the first that a whole register may be streamed to.
    constexpr uintptr_t width = Out::n * sizeof(O);
    const auto past = reinterpret_cast<uintptr_t>(out_) % width;
    const int64_t head = past ? (width - past) / sizeof(O) : 0;
    if (stream_ && head > 0) write(head < D ? head : D);
  }

  void step() {
    if (i_ + Out::n <= D_) write();
  }
  void finish() {
    while (i_ + Out::n <= D_) write();
    if (i_ < D_) write(D_ - i_);
  }

 private:
  using Out = Access<T, O>;

  inline void write() {
    auto value = x_ * Access<T, C>::load(centre_ + i_) + y_ * Access<T, S>::load(student_ + i_);
    if constexpr (HasAddend) value += Access<T, S>::load(addend_ + i_);
    if (AlwaysStreams || stream_) {
      Out::stream(out_ + i_, value);
    } else {
      Out::store(out_ + i_, value);
    }
    i_ += Out::n;
  }
  inline void write(int64_t count) {
    auto value = x_ * Access<T, C>::load(centre_ + i_, count) +
                 y_ * Access<T, S>::load(student_ + i_, count);
    if constexpr (HasAddend) value += Access<T, S>::load(addend_ + i_, count);
    Out::store(out_ + i_, value, count);
    i_ += count;
  }

  O* out_;
  const C* centre_;
  const S* student_;
  const S* addend_;
  typename Out::V x_;
  typename Out::V y_;
  bool stream_;
  int64_t D_;
  int64_t i_ = 0;  // written so far
};

// Is written beside the sums.
struct Nothing {
  void step() {}
  void finish() {}
};

// Asks for a row, line by line, while another is read.
template <class T, class S>
class Prefetcher {
 public:
  explicit Prefetcher(const void* row) : row_(static_cast<const char*>(row)) {}
  // The lines that two registers from the i-th element on are read of.
  void two_registers(int64_t i) const {
    constexpr int bytes = 2 * Access<T, S>::n * sizeof(S);
    for (int line = 0; line < bytes; line += 64) {
      __builtin_prefetch(row_ + i * int64_t(sizeof(S)) + line, 0, 2);
    }
  }

 private:
  const char* row_;
};

template <class T, class S, class Q, class C, bool HasTeacher, bool HasAhead, class Meanwhile>
RowSums<T> sums_of(const Vectors<T>& row, const VectorsAhead& ahead, Meanwhile meanwhile,
                   int64_t D) {
  const auto* student = static_cast<const S*>(row.student.data);
  const auto* teacher = static_cast<const Q*>(row.teacher.data);
  const auto* centre = static_cast<const C*>(row.centre.data);
  const Prefetcher<T, S> student_ahead(ahead.student);
  const Prefetcher<T, Q> teacher_ahead(ahead.teacher);
  const Prefetcher<T, C> centre_ahead(ahead.centre);
  using Student = Access<T, S>;
  using Teacher = Access<T, Q>;
  using Centre = Access<T, C>;
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
      if constexpr (HasAhead) {
        student_ahead.two_registers(i);
        if constexpr (HasTeacher) teacher_ahead.two_registers(i);
        // Beside the sums alone the instructions cost more than is waited for.
        if constexpr (!std::is_same_v<Meanwhile, Nothing>) centre_ahead.two_registers(i);
      }
      for (int u = 0; u < 2; ++u) {
        const int64_t at = i + u * n;
        add(u, Student::load(student + at), Centre::load(centre + at));
        if constexpr (HasTeacher) {
          const auto t = Teacher::load(teacher + at);
          tt[u] += t * t;
        }
        meanwhile.step();
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
  meanwhile.finish();
  return total;
}

// Calls f with null pointers of the types of a student, which is float64 exactly where T is double,
// and of its centre, which has the student's type or T.
template <class T, class F>
inline auto with_types(Dtype student, Dtype centre, const F& f) {
  const auto with_centre = [&](auto* type_s) {
    return centre == student ? f(type_s, type_s) : f(type_s, static_cast<T*>(nullptr));
  };
  if constexpr (sizeof(T) == 8) {
    return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
  } else {
    if (student == Dtype::float16) return with_centre(static_cast<float16*>(nullptr));
    if (student == Dtype::bfloat16) return with_centre(static_cast<bfloat16*>(nullptr));
    return f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
  }
}

template <class T>
RowSums<T> sums(const Vectors<T>& row, const VectorsAhead& ahead, const Combination<T>& meanwhile,
                int64_t D) {
  return with_types<T>(row.student.dtype, row.centre.dtype, [&](auto* type_s, auto* type_c) {
    using S = std::remove_pointer_t<decltype(type_s)>;
    using C = std::remove_pointer_t<decltype(type_c)>;
    const auto run = [&](auto has_ahead, auto beside) {
      using Beside = decltype(beside);
      constexpr bool kAhead = decltype(has_ahead)::value;
      if (!row.teacher.data) {
        return sums_of<T, S, S, C, false, kAhead, Beside>(row, ahead, beside, D);
      }
      return with_type<T>(row.teacher.dtype, [&](auto* type_t) {
        using Q = std::remove_pointer_t<decltype(type_t)>;
        return sums_of<T, S, Q, C, true, kAhead, Beside>(row, ahead, beside, D);
      });
    };
    if (!ahead.student) return run(std::false_type(), Nothing());
    if (!meanwhile.out.data) return run(std::true_type(), Nothing());
    return run(std::true_type(), Combiner<T, S, S, C, false, true>(meanwhile, D));
  });
}

template <class T>
void combine(const Combination<T>& c, int64_t D) {
  with_types<T>(c.student.dtype, c.centre.dtype, [&](auto* type_s, auto* type_c) {
    using S = std::remove_pointer_t<decltype(type_s)>;
    using C = std::remove_pointer_t<decltype(type_c)>;
    if (c.addend) return Combiner<T, S, S, C, true>(c, D).finish();
    with_type<T>(c.out.dtype, [&](auto* type_o) {
      using O = std::remove_pointer_t<decltype(type_o)>;
      Combiner<T, O, S, C>(c, D).finish();
    });
  });
}

template <class T>
void accumulate(T* out, ConstRow centre, ConstRow student, T x, T y, int64_t D) {
  using Sum = Access<T, T>;
  with_types<T>(student.dtype, centre.dtype, [&](auto* type_s, auto* type_c) {
    using Student = Access<T, std::remove_pointer_t<decltype(type_s)>>;
    using Centre = Access<T, std::remove_pointer_t<decltype(type_c)>>;
    const auto* s = static_cast<const std::remove_pointer_t<decltype(type_s)>*>(student.data);
    const auto* c = static_cast<const std::remove_pointer_t<decltype(type_c)>*>(centre.data);
    int64_t i = 0;
    for (; i + Sum::n <= D; i += Sum::n) {
      Sum::store(out + i, Sum::load(out + i) + x * Centre::load(c + i) + y * Student::load(s + i));
    }
    if (i < D) {
      const int64_t count = D - i;
      Sum::store(out + i,
                 Sum::load(out + i, count) + x * Centre::load(c + i, count) +
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
