// Integers.
#include "operations.h"

namespace ptx {

template <class T>
Step of_integers(const std::string& name) {
  using U = std::make_unsigned_t<T>;  // for these wrap
  constexpr unsigned kBits = 8 * sizeof(T);
  if (name == "add") return binary<U, [](U a, U b) { return a + b; }>;
  if (name == "sub") return binary<U, [](U a, U b) { return a - b; }>;
  if (name == "mul.lo") return binary<U, [](U a, U b) { return uint64_t(a) * b; }>;
  if (name == "mad.lo") return ternary<U, [](U a, U b, U c) { return uint64_t(a) * b + c; }>;
  if (name == "neg") return unary<U, [](U a) { return -uint64_t(a); }>;
  if (name == "not") return unary<U, [](U a) { return ~a; }>;
  if (name == "and") return binary<U, [](U a, U b) { return a & b; }>;
  if (name == "or") return binary<U, [](U a, U b) { return a | b; }>;
  if (name == "xor") return binary<U, [](U a, U b) { return a ^ b; }>;
  // Without a remainder where it is divided by 0: a GPU gives anything.
  if (name == "div") return binary<T, [](T a, T b) { return b == 0 ? T(-1) : a / b; }>;
  if (name == "rem") return binary<T, [](T a, T b) { return b == 0 ? T(-1) : a % b; }>;
  if (name == "min") return binary<T, [](T a, T b) { return std::min(a, b); }>;
  if (name == "max") return binary<T, [](T a, T b) { return std::max(a, b); }>;
  if (name == "shl")
    return [](Thread& t, const Instruction& i) {
      const auto by = t.get<uint32_t>(i.in[1]);
      t.set<U>(i.out[0], by < kBits ? U(t.get<U>(i.in[0]) << by) : U(0));
    };
  if (name == "shr")
    return [](Thread& t, const Instruction& i) {
      const auto by = std::min<uint32_t>(t.get<uint32_t>(i.in[1]), kBits - 1);
      const bool is_out = std::is_unsigned_v<T> && t.get<uint32_t>(i.in[1]) >= kBits;
      t.set<T>(i.out[0], is_out ? T(0) : T(t.get<T>(i.in[0]) >> by));
    };
  if (name == "bfe")  // some bits, from a place on
    return [](Thread& t, const Instruction& i) {
      const auto from = t.get<uint32_t>(i.in[1]) & 255, count = t.get<uint32_t>(i.in[2]) & 255;
      if (std::is_signed_v<T> || count == 0 || from + count > kBits) fail("such bits are not done");
      t.set<U>(i.out[0], U(U(t.get<U>(i.in[0]) >> from) << (kBits - count)) >> (kBits - count));
    };
  if (name == "setp.eq") return compare<T, [](T a, T b) { return a == b; }>;
  if (name == "setp.ne") return compare<T, [](T a, T b) { return a != b; }>;
  if (name == "setp.lt" || name == "setp.lo") return compare<T, [](T a, T b) { return a < b; }>;
  if (name == "setp.le" || name == "setp.ls") return compare<T, [](T a, T b) { return a <= b; }>;
  if (name == "setp.gt" || name == "setp.hi") return compare<T, [](T a, T b) { return b < a; }>;
  if (name == "setp.ge" || name == "setp.hs") return compare<T, [](T a, T b) { return a >= b; }>;
  if constexpr (sizeof(T) == 4) {
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    if (name == "mul.wide")
      return [](Thread& t, const Instruction& i) {
        t.set<Wide>(i.out[0], Wide(t.get<T>(i.in[0])) * t.get<T>(i.in[1]));
      };
    if (name == "mad.wide")
      return [](Thread& t, const Instruction& i) {
        const Wide product = Wide(t.get<T>(i.in[0])) * t.get<T>(i.in[1]);
        t.set<uint64_t>(i.out[0], uint64_t(product) + t.get<uint64_t>(i.in[2]));
      };
  }
  return nullptr;
}

template Step of_integers<uint8_t>(const std::string&);
template Step of_integers<int8_t>(const std::string&);
template Step of_integers<uint16_t>(const std::string&);
template Step of_integers<int16_t>(const std::string&);
template Step of_integers<uint32_t>(const std::string&);
template Step of_integers<int32_t>(const std::string&);
template Step of_integers<uint64_t>(const std::string&);
template Step of_integers<int64_t>(const std::string&);

}  // namespace ptx
