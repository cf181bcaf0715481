// Steps made of a function of numbers: they take its arguments from registers, and keep its result.
#pragma once

#include "machine.h"

namespace ptx {

template <class T, auto f>
void unary(Thread& t, const Instruction& i) {
  t.set<T>(i.out[0], T(f(t.get<T>(i.in[0]))));
}
template <class T, auto f>
void binary(Thread& t, const Instruction& i) {
  t.set<T>(i.out[0], T(f(t.get<T>(i.in[0]), t.get<T>(i.in[1]))));
}
template <class T, auto f>
void ternary(Thread& t, const Instruction& i) {
  t.set<T>(i.out[0], T(f(t.get<T>(i.in[0]), t.get<T>(i.in[1]), t.get<T>(i.in[2]))));
}
template <class T, auto f>
void compare(Thread& t, const Instruction& i) {
  const bool holds = f(t.get<T>(i.in[0]), t.get<T>(i.in[1]));
  t.set<uint8_t>(i.out[0], holds);
  if (i.out.size() > 1) t.set<uint8_t>(i.out[1], !holds);
}

// What an operation on such integers does, nullptr where it is not known.
template <class T>
Step of_integers(const std::string& name);

}  // namespace ptx
