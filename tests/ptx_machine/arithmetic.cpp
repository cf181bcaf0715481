// Arithmetic, and floats. Rounding is to nearest; what a GPU approximates is off by as much as it
// may be.
#include <cmath>

#include "operations.h"

namespace ptx {
namespace {

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = value != value ? 0x7fff : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};
using float16 = _Float16;
template <class T>
constexpr bool kIsHalf = std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;
template <class T>
constexpr bool kIsFloat = kIsHalf<T> || std::is_floating_point_v<T>;

template <class T>
struct Two {
  T low, high;
};

template <class To, class From>
void convert(Thread& t, const Instruction& i) {
  const From from = t.get<From>(i.in[0]);
  if constexpr (kIsHalf<From>) {
    t.set<To>(i.out[0], To(float(from)));
  } else {
    t.set<To>(i.out[0], To(from));
  }
}
template <class To>
void convert_two(Thread& t, const Instruction& i) {
  const Two<To> two{To(t.get<float>(i.in[1])), To(t.get<float>(i.in[0]))};
  t.set(i.out[0], two);
}

// As far from the exact value as it may be, 2 units in the last place: up or down, the same for the
// same value.
float off(float exact) {
  uint32_t bits;
  std::memcpy(&bits, &exact, 4);
  const uint32_t exponent = bits >> 23 & 0xff;
  if (exponent == 0 || exponent >= 0xfe) return exact;
  bits += (bits * 2654435761u) >> 31 ? 2 : -2;
  std::memcpy(&exact, &bits, 4);
  return exact;
}

Step of_approximations(const std::string& name) {
  using T = float;
  if (name == "rcp") return unary<T, [](T a) { return off(1 / a); }>;
  if (name == "sqrt") return unary<T, [](T a) { return off(std::sqrt(a)); }>;
  if (name == "div") return binary<T, [](T a, T b) { return off(a / b); }>;
  return nullptr;
}

// Of two NaN, and of one beside a number, as PTX has it: max is the number; `u` holds for NaN.
template <class T>
Step of_floats(const std::string& name) {
  if (name == "add") return binary<T, [](T a, T b) { return a + b; }>;
  if (name == "sub") return binary<T, [](T a, T b) { return a - b; }>;
  if (name == "mul") return binary<T, [](T a, T b) { return a * b; }>;
  if (name == "div") return binary<T, [](T a, T b) { return a / b; }>;
  if (name == "fma") return ternary<T, [](T a, T b, T c) { return std::fma(a, b, c); }>;
  if (name == "neg") return unary<T, [](T a) { return -a; }>;
  if (name == "abs") return unary<T, [](T a) { return std::fabs(a); }>;
  if (name == "rcp") return unary<T, [](T a) { return 1 / a; }>;
  if (name == "sqrt") return unary<T, [](T a) { return std::sqrt(a); }>;
  if (name == "min") return binary<T, [](T a, T b) { return std::fmin(a, b); }>;
  if (name == "max") return binary<T, [](T a, T b) { return std::fmax(a, b); }>;
  if (name == "setp.eq") return compare<T, [](T a, T b) { return a == b; }>;
  if (name == "setp.ne") return compare<T, [](T a, T b) { return a < b || b < a; }>;
  if (name == "setp.lt") return compare<T, [](T a, T b) { return a < b; }>;
  if (name == "setp.le") return compare<T, [](T a, T b) { return a <= b; }>;
  if (name == "setp.gt") return compare<T, [](T a, T b) { return b < a; }>;
  if (name == "setp.ge") return compare<T, [](T a, T b) { return a >= b; }>;
  if (name == "setp.equ") return compare<T, [](T a, T b) { return !(a < b || b < a); }>;
  if (name == "setp.neu") return compare<T, [](T a, T b) { return a != b; }>;
  if (name == "setp.ltu") return compare<T, [](T a, T b) { return !(a >= b); }>;
  if (name == "setp.leu") return compare<T, [](T a, T b) { return !(b < a); }>;
  if (name == "setp.gtu") return compare<T, [](T a, T b) { return !(a <= b); }>;
  if (name == "setp.geu") return compare<T, [](T a, T b) { return !(a < b); }>;
  if (name == "setp.num") return compare<T, [](T a, T b) { return a == a && b == b; }>;
  if (name == "setp.nan") return compare<T, [](T a, T b) { return a != a || b != b; }>;
  return nullptr;
}

Step of_predicates(const std::string& name) {
  using B = uint8_t;
  if (name == "mov") return unary<B, [](B a) { return a != 0; }>;
  if (name == "not") return unary<B, [](B a) { return a == 0; }>;
  if (name == "and") return binary<B, [](B a, B b) { return a && b; }>;
  if (name == "or") return binary<B, [](B a, B b) { return a || b; }>;
  if (name == "xor") return binary<B, [](B a, B b) { return a != b; }>;
  return nullptr;
}

using Floats = Two<float>;
Step of_two_floats(const std::string& name) {
  using F = Floats;
  if (name == "add") return binary<F, [](F a, F b) { return F{a.low + b.low, a.high + b.high}; }>;
  if (name == "sub") return binary<F, [](F a, F b) { return F{a.low - b.low, a.high - b.high}; }>;
  if (name == "mul") return binary<F, [](F a, F b) { return F{a.low * b.low, a.high * b.high}; }>;
  if (name == "fma")
    return ternary<F, [](F a, F b, F c) {
      return F{std::fma(a.low, b.low, c.low), std::fma(a.high, b.high, c.high)};
    }>;
  return nullptr;
}

template <class H>
bool is_nan(H value) {
  return float(value) != float(value);
}

template <class H>
Step of_halves(const std::string& name) {
  if (name == "setp.num") return compare<H, [](H a, H b) { return !is_nan(a) && !is_nan(b); }>;
  if (name == "setp.nan") return compare<H, [](H a, H b) { return is_nan(a) || is_nan(b); }>;
  return nullptr;
}

// Of two pairs: a predicate for the low ones, one for the high ones.
template <class H>
Step of_two_halves(const std::string& name) {
  if (name != "setp.nan") return nullptr;
  return [](Thread& t, const Instruction& i) {
    const auto a = t.get<Two<H>>(i.in[0]), b = t.get<Two<H>>(i.in[1]);
    t.set(i.out[0], uint8_t(is_nan(a.low) || is_nan(b.low)));
    t.set(i.out[1], uint8_t(is_nan(a.high) || is_nan(b.high)));
  };
}

// float32 and half precision in one: the last operand is float32.
template <class H>
Step of_mixed(const std::string& name) {
  if (name == "add")
    return [](Thread& t, const Instruction& i) {
      t.set(i.out[0], float(t.get<H>(i.in[0])) + t.get<float>(i.in[1]));
    };
  if (name == "sub")
    return [](Thread& t, const Instruction& i) {
      t.set(i.out[0], float(t.get<H>(i.in[0])) - t.get<float>(i.in[1]));
    };
  if (name == "fma")
    return [](Thread& t, const Instruction& i) {
      const auto a = float(t.get<H>(i.in[0])), b = float(t.get<H>(i.in[1]));
      t.set(i.out[0], std::fma(a, b, t.get<float>(i.in[2])));
    };
  return nullptr;
}

// Calls f with a value of the C++ type of a PTX type.
template <class F>
Step with_type(const std::string& type, const F& f) {
  if (type == "u8" || type == "b8") return f(uint8_t());
  if (type == "s8") return f(int8_t());
  if (type == "u16" || type == "b16") return f(uint16_t());
  if (type == "s16") return f(int16_t());
  if (type == "u32" || type == "b32") return f(uint32_t());
  if (type == "s32") return f(int32_t());
  if (type == "u64" || type == "b64") return f(uint64_t());
  if (type == "s64") return f(int64_t());
  if (type == "f16") return f(float16());
  if (type == "bf16") return f(bfloat16(0.f));
  if (type == "f32") return f(float());
  if (type == "f64") return f(double());
  return nullptr;
}

Step conversion(const std::string& to, const std::string& from) {
  if (to == "f16x2") return convert_two<float16>;
  if (to == "bf16x2") return convert_two<bfloat16>;
  return with_type(to, [&](auto to_value) {
    return with_type(from, [&](auto from_value) -> Step {
      using To = decltype(to_value);
      using From = decltype(from_value);
      // Floats become no integers here, and half precision is made of floats, bfloat16 of float32.
      if constexpr (kIsFloat<From> && !kIsFloat<To>)
        return nullptr;
      else if constexpr (kIsHalf<To> && !std::is_floating_point_v<From>)
        return nullptr;
      else if constexpr (std::is_same_v<To, bfloat16> && !std::is_same_v<From, float>)
        return nullptr;
      else if constexpr (kIsHalf<From> && !kIsFloat<To>)
        return nullptr;
      else
        return convert<To, From>;
    });
  });
}

}  // namespace

Step arithmetic(const Instruction& instruction) {
  const std::vector<std::string>& parts = instruction.parts;
  std::string name = parts[0];
  if (name == "cvt") return conversion(parts[parts.size() - 2], parts.back());
  if (name == "setp") name += '.' + parts[1];
  for (const char* part : {"lo", "wide"}) {
    if (instruction.has(part)) name = name + '.' + part;
  }
  const std::string& type = parts.back();
  if (type == "pred") return of_predicates(name);
  if (type == "f32x2") return of_two_floats(name);
  if (type == "f16x2") return of_two_halves<float16>(name);
  if (type == "bf16x2") return of_two_halves<bfloat16>(name);
  if (parts[parts.size() - 2] == "f32") {
    return type == "f16" ? of_mixed<float16>(name) : of_mixed<bfloat16>(name);
  }
  if (instruction.has("approx") || instruction.has("full")) return of_approximations(name);
  return with_type(type, [&](auto value) -> Step {
    using T = decltype(value);
    if constexpr (kIsHalf<T>)
      return of_halves<T>(name);
    else if constexpr (kIsFloat<T>)
      return of_floats<T>(name);
    else
      return of_integers<T>(name);
  });
}

}  // namespace ptx
