// PTX as the machine runs it: kernels of instructions, each with the function that does it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

class Thread;
struct Instruction;
using Step = void (*)(Thread&, const Instruction&);

enum class Special : uint8_t { kThread, kThreads, kBlock, kBlocks };  // %tid, %ntid, ...
enum class Space : uint8_t { kGlobal, kShared, kParameter };

// A register, a number that is known beforehand, or what only a thread knows of itself. Of an
// address, `value` is added to the register's.
struct Operand {
  enum Kind : uint8_t { kUnused, kNumber, kRegister, kSpecial } kind = kUnused;
  bool is_negated = false;  // of a predicate
  Special special{};
  uint8_t axis = 0;  // of a special one
  int number = 0;    // the register's
  uint64_t value = 0;
};

// With whom a thread meets at an instruction, which the machine then does for all of them.
enum class Meets : uint8_t { kNobody, kWarp, kBlock, kEnd };

struct Instruction {
  std::string text;
  std::vector<std::string> parts;  // of its name, between dots
  Step step = nullptr;
  Meets meets = Meets::kNobody;
  Operand guard;  // it is passed over where this predicate is off
  std::vector<Operand> out;
  std::vector<Operand> in;
  Space space{};
  uint8_t bytes = 0;  // of an element in memory
  bool is_signed = false;
  bool is_read_only = false;  // what the launch has written need not be seen
  int target = -1;            // of a branch

  bool has(const char* part) const {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  }
};

struct Parameter {
  size_t offset;
  size_t bytes;
};

struct Kernel {
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  size_t shared_bytes = 0;
  unsigned most_threads = 1024;
  int registers = 0;
};

// A file of PTX. A kernel is read when it is first asked for.
class Module {
 public:
  explicit Module(const std::string& text);
  bool has(const std::string& kernel) const { return begins_.count(kernel) != 0; }
  const Kernel& kernel(const std::string& name);

 private:
  friend class KernelReader;
  struct Variable {
    size_t bytes;
    size_t alignment;
    std::vector<uint64_t> data;  // of a global one
  };
  void declare(const std::string& line);

  std::string text_;
  std::map<std::string, size_t> begins_;
  std::map<std::string, Kernel> kernels_;
  std::map<std::string, Variable> global_;
  std::map<std::string, Variable> shared_;
};

// Sets what an instruction does, from its name. Throws where that is not known.
void set_step(Instruction& instruction);
// The same of arithmetic, nullptr where it is not known.
Step arithmetic(const Instruction& instruction);

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

inline std::vector<std::string> split(const std::string& text, const char* separators) {
  std::vector<std::string> parts;
  for (size_t begin = 0; (begin = text.find_first_not_of(separators, begin)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return parts;
}

}  // namespace ptx
