// Threads, blocks and launches.
#pragma once

#include <cstring>
#include <random>
#include <type_traits>

#include "memory.h"
#include "program.h"

namespace ptx {

struct Dim3 {
  unsigned axis[3] = {1, 1, 1};
  unsigned count() const { return axis[0] * axis[1] * axis[2]; }
  // Of the index-th, counted along the first axis.
  Dim3 place(unsigned index) const {
    return {{index % axis[0], index / axis[0] % axis[1], index / axis[0] / axis[1]}};
  }
};

class Block;

class Thread {
 public:
  Thread(Block& block, unsigned index);

  // Runs on to where it meets others.
  void run();
  // Past where it met them.
  void go_on() {
    waits = Meets::kNobody;
    ++at;
  }

  template <class T>
  T get(const Operand& operand) const {
    const bool is_register = operand.kind == Operand::kRegister && is_set_[operand.number];
    const uint64_t bits = is_register ? registers_[operand.number] : bits_of(operand);
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
  }
  bool is_set(const Operand& operand) const {
    return operand.kind != Operand::kRegister || is_set_[operand.number];
  }
  // Integers with a sign to the register's whole width: a load may widen.
  template <class T>
  void set(const Operand& operand, T value) {
    if (operand.kind == Operand::kUnused) return;
    uint64_t bits = 0;
    if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) {
      bits = uint64_t(int64_t(value));
    } else {
      std::memcpy(&bits, &value, sizeof(T));
    }
    registers_[operand.number] = bits;
    is_set_[operand.number] = true;
  }
  bool is_on(const Operand& predicate) const {
    return predicate.kind == Operand::kUnused ||
           (get<uint8_t>(predicate) != 0) != predicate.is_negated;
  }
  // Where the bytes lie in the process's memory; throws where the access is wrong.
  char* reach(Space space, Access access);
  Place place() const;

  Block& block;
  const unsigned index;
  size_t at = 0;  // the next instruction
  Meets waits = Meets::kNobody;

 private:
  uint64_t bits_of(const Operand& operand) const;

  std::vector<uint64_t> registers_;
  std::vector<char> is_set_;
};

// What was asked for, and what the blocks share.
struct Launch {
  const Kernel& kernel;
  Dim3 blocks;
  Dim3 threads;
  size_t shared_bytes;  // beside the kernel's own
  std::vector<char> parameters;
  std::mt19937_64 random;
  GlobalMemory global;

  // Returns how many blocks came to a place where threads meet.
  int64_t run();
};

class Block {
 public:
  Block(Launch& launch, unsigned index);
  // Threads take turns in any order. Returns whether they met.
  bool run();

  Launch& launch;
  const unsigned index;
  int barriers = 0;  // that it has passed
  SharedMemory shared;
  GlobalMemory::Seen seen;

 private:
  bool meet_in_warp(Thread* lanes, size_t count);
  void meet_at_barrier();

  std::vector<Thread> threads_;
};

// What the lanes of a warp do together, each at the same instruction.
void shuffle(const Instruction& instruction, Thread* lanes);
void load_matrix(const Instruction& instruction, Thread* lanes);

}  // namespace ptx
