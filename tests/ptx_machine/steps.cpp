// What each instruction does: memory, moves and the warp here, the rest in arithmetic.cpp.
#include "machine.h"

namespace ptx {
namespace {

void move(Thread& t, const Instruction& i) { t.set(i.out[0], t.get<uint64_t>(i.in[0])); }

void choose(Thread& t, const Instruction& i) {
  t.set(i.out[0], t.get<uint64_t>(i.in[t.is_on(i.in[2]) ? 0 : 1]));
}

// Of several registers one, or of one several; the first is the lowest. Triton packs registers that
// nothing was written to, and does not look at that half: it is NaN.
void pack(Thread& t, const Instruction& i) {
  const size_t many = std::max(i.in.size(), i.out.size());
  const unsigned bits = 8 * i.bytes / many;
  const uint64_t mask = (uint64_t(1) << bits) - 1;
  if (i.out.size() > 1) {
    const auto all = t.get<uint64_t>(i.in[0]);
    for (size_t k = 0; k < many; ++k) t.set(i.out[k], all >> (k * bits) & mask);
  } else {
    uint64_t all = 0;
    for (size_t k = 0; k < many; ++k) {
      all |= ((t.is_set(i.in[k]) ? t.get<uint64_t>(i.in[k]) : mask) & mask) << (k * bits);
    }
    t.set(i.out[0], all);
  }
}

uint64_t address(const Thread& t, const Instruction& i) {
  const Operand& base = i.in[0];
  return base.kind == Operand::kRegister ? t.get<uint64_t>(base) + base.value : base.value;
}

void load(Thread& t, const Instruction& i) {
  const Way way = i.is_read_only ? Way::kReadOnly : Way::kRead;
  const char* data = t.reach(i.space, {address(t, i), i.bytes * i.out.size(), way});
  for (size_t k = 0; k < i.out.size(); ++k) {
    uint64_t bits = 0;
    std::memcpy(&bits, data + k * i.bytes, i.bytes);
    const unsigned unused = 64 - 8 * i.bytes;
    t.set<uint64_t>(i.out[k], i.is_signed ? uint64_t(int64_t(bits << unused) >> unused) : bits);
  }
}

void store(Thread& t, const Instruction& i) {
  const size_t count = i.in.size() - 1;
  char written[32];
  for (size_t k = 0; k < count; ++k) {
    const auto bits = t.get<uint64_t>(i.in[k + 1]);
    std::memcpy(written + k * i.bytes, &bits, i.bytes);
  }
  const Access access{address(t, i), i.bytes * count, Way::kWrite, written};
  std::memcpy(t.reach(i.space, access), written, access.bytes);
}

// Only with acquire and release: another kind orders nothing, and none of the kernels has it.
void atomic(Thread& t, const Instruction& i) {
  if (!i.has("acq_rel") || !i.has("gpu") || i.bytes != 4) fail("such an atomic is not done");
  const uint64_t where = address(t, i);
  auto* data = reinterpret_cast<uint32_t*>(where);
  if (where % 4 != 0) fail("an atomic at an address that is no multiple of 4");
  const uint32_t old = *data, operand = t.get<uint32_t>(i.in[1]);
  *data = i.has("inc") ? (old >= operand ? 0 : old + 1) : old + operand;
  t.block.launch.global.synchronize(where, t.place(), t.block.seen);
  t.set<uint32_t>(i.out[0], old);
}

// To just before its target, for every step goes on by one.
void branch(Thread& t, const Instruction& i) { t.at = size_t(i.target) - 1; }

// Throws where a part of the name is none of these: it would be passed over.
void check_parts(const Instruction& instruction, std::initializer_list<const char*> known,
                 size_t types) {
  const std::vector<std::string>& parts = instruction.parts;
  for (size_t i = 1; i + types < parts.size(); ++i) {
    if (std::find(known.begin(), known.end(), parts[i]) == known.end()) {
      fail("not known: ." + parts[i] + " of " + instruction.text);
    }
  }
}

Space space_of(const Instruction& instruction) {
  if (instruction.has("global")) return Space::kGlobal;
  if (instruction.has("param")) return Space::kParameter;
  if (instruction.has("shared") || instruction.has("shared::cta")) return Space::kShared;
  fail("an address of any space: " + instruction.text);
}

}  // namespace

void shuffle(const Instruction& instruction, Thread* lanes) {
  const bool is_butterfly = instruction.has("bfly");
  uint32_t values[32];
  for (int lane = 0; lane < 32; ++lane) values[lane] = lanes[lane].get<uint32_t>(instruction.in[0]);
  for (int lane = 0; lane < 32; ++lane) {
    Thread& thread = lanes[lane];
    if (thread.get<uint32_t>(instruction.in[3]) != 0xffffffff) fail("a mask of some lanes");
    const auto b = thread.get<uint32_t>(instruction.in[1]) & 31;
    const auto c = thread.get<uint32_t>(instruction.in[2]);
    const unsigned clamp = c & 31, segment = c >> 8 & 31;
    const unsigned last = (lane & segment) | (clamp & ~segment);
    unsigned from = is_butterfly ? lane ^ b : (lane & segment) | (b & ~segment);
    const bool is_valid = from <= last;
    if (!is_valid) from = lane;
    thread.set(instruction.out[0], values[from]);
    if (instruction.out.size() > 1) thread.set(instruction.out[1], uint8_t(is_valid));
  }
}

// Matrices of 8 rows of 8 elements of two bytes; lane k has the address of a row, and gets two
// neighbouring elements of row k / 4 of each.
void load_matrix(const Instruction& instruction, Thread* lanes) {
  uint32_t words[4][32];
  for (size_t k = 0; k < instruction.out.size(); ++k) {
    for (int row = 0; row < 8; ++row) {
      Thread& thread = lanes[8 * k + row];
      const char* data =
          thread.reach(Space::kShared, {address(thread, instruction), 16, Way::kRead});
      std::memcpy(&words[k][4 * row], data, 16);
    }
    for (int lane = 0; lane < 32; ++lane) lanes[lane].set(instruction.out[k], words[k][lane]);
  }
}

void set_step(Instruction& instruction) {
  const std::string& base = instruction.parts[0];
  const std::string& type = instruction.parts.back();
  if (base == "ret" || base == "exit") {
    check_parts(instruction, {}, 0);
    instruction.meets = Meets::kEnd;
  } else if (base == "bar") {
    check_parts(instruction, {"sync"}, 0);
    if (instruction.in.size() != 1 || instruction.in[0].value != 0)
      fail("a barrier of some threads");
    instruction.meets = Meets::kBlock;
  } else if (base == "shfl") {
    check_parts(instruction, {"sync", "bfly", "idx"}, 1);
    instruction.meets = Meets::kWarp;
  } else if (base == "ldmatrix") {
    check_parts(instruction, {"sync", "aligned", "m8n8", "x1", "x2", "x4", "shared"}, 1);
    instruction.meets = Meets::kWarp;
  } else if (base == "bra") {
    check_parts(instruction, {"uni"}, 0);
    instruction.step = branch;
  } else if (base == "ld" || base == "st" || base == "atom") {
    check_parts(instruction,
                {"global", "shared", "shared::cta", "param", "nc", "cg", "L1::no_allocate", "v2",
                 "v4", "acq_rel", "gpu", "inc", "add"},
                1);
    instruction.space = space_of(instruction);
    instruction.bytes = std::stoul(type.substr(1)) / 8;
    instruction.is_signed = type[0] == 's';
    instruction.is_read_only = instruction.has("nc");
    instruction.step = base == "ld" ? load : base == "st" ? store : atomic;
  } else if (base == "mov" && type != "pred") {
    check_parts(instruction, {}, 1);
    instruction.bytes = std::stoul(type.substr(1)) / 8;
    instruction.step = instruction.in.size() + instruction.out.size() > 2 ? pack : move;
  } else if (base == "cvta") {
    check_parts(instruction, {"to", "global"}, 1);
    instruction.step = move;
  } else if (base == "selp") {
    check_parts(instruction, {}, 1);
    instruction.step = choose;
  } else {
    const bool is_mixed = instruction.has("f32") && type != "f32";
    const size_t types = base == "cvt" || base == "setp" || is_mixed ? 2 : 1;
    check_parts(instruction, {"rn", "approx", "full", "ftz", "lo", "wide"}, types);
    instruction.step = arithmetic(instruction);
    if (instruction.step == nullptr) fail("not known: " + instruction.text);
  }
}

}  // namespace ptx
