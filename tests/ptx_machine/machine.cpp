#include "machine.h"

#include <numeric>

namespace ptx {
namespace {

constexpr size_t kWarp = 32;
constexpr size_t kMostSteps = 10'000'000;  // of a thread, until it meets others

// The same, with which instruction of which thread it was.
[[noreturn]] void fail_at(const Thread& thread, const std::runtime_error& error) {
  const Instruction& instruction = thread.block.launch.kernel.code[thread.at];
  fail(std::string(error.what()) + ": `" + instruction.text + "`, thread " +
       std::to_string(thread.index) + " of block " + std::to_string(thread.block.index));
}

std::vector<size_t> any_order(size_t count, std::mt19937_64& random) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

}  // namespace

Thread::Thread(Block& block, unsigned index)
    : block(block),
      index(index),
      registers_(block.launch.kernel.registers),
      is_set_(block.launch.kernel.registers) {}

Place Thread::place() const { return {int(block.index), int(index), block.barriers}; }

uint64_t Thread::bits_of(const Operand& operand) const {
  const Launch& launch = block.launch;
  switch (operand.kind) {
    case Operand::kNumber: return operand.value;
    case Operand::kRegister: fail("a register is read that nothing was written to");
    case Operand::kSpecial:
      switch (operand.special) {
        case Special::kThread: return launch.threads.place(index).axis[operand.axis];
        case Special::kThreads: return launch.threads.axis[operand.axis];
        case Special::kBlock: return launch.blocks.place(block.index).axis[operand.axis];
        case Special::kBlocks: return launch.blocks.axis[operand.axis];
      }
      break;
    case Operand::kUnused: break;
  }
  fail("an operand without a value");
}

char* Thread::reach(Space space, Access access) {
  switch (space) {
    case Space::kShared:
      access.address = uint32_t(access.address);
      return block.shared.reach(access, place());
    case Space::kGlobal: return block.launch.global.reach(access, place(), block.seen);
    case Space::kParameter: break;
  }
  std::vector<char>& parameters = block.launch.parameters;
  if (access.address + access.bytes > parameters.size()) fail("out of the kernel's parameters");
  return parameters.data() + access.address;
}

void Thread::run() try {
  const std::vector<Instruction>& code = block.launch.kernel.code;
  for (size_t steps = 0; steps < kMostSteps; ++steps) {
    const Instruction& instruction = code[at];
    if (is_on(instruction.guard)) {
      waits = instruction.meets;
      if (waits != Meets::kNobody) return;
      instruction.step(*this, instruction);
    }
    ++at;
  }
  fail("a thread does not come to an end");
} catch (const std::runtime_error& error) {
  fail_at(*this, error);
}

Block::Block(Launch& launch, unsigned index)
    : launch(launch), index(index), shared(launch.kernel.shared_bytes + launch.shared_bytes) {
  const unsigned count = launch.threads.count();
  threads_.reserve(count);
  for (unsigned i = 0; i < count; ++i) threads_.emplace_back(*this, i);
}

bool Block::run() {
  bool has_met = false;
  while (true) {
    for (size_t i : any_order(threads_.size(), launch.random)) {
      if (threads_[i].waits == Meets::kNobody) threads_[i].run();
    }
    bool has_met_in_warp = false;
    for (size_t first = 0; first < threads_.size(); first += kWarp) {
      const size_t count = std::min(kWarp, threads_.size() - first);
      has_met_in_warp = meet_in_warp(&threads_[first], count) || has_met_in_warp;
    }
    has_met = has_met || has_met_in_warp;
    if (has_met_in_warp) continue;
    if (threads_[0].waits == Meets::kEnd) {
      for (const Thread& thread : threads_) {
        if (thread.waits != Meets::kEnd) fail("threads wait at a barrier for one that has ended");
      }
      return has_met;
    }
    meet_at_barrier();
    has_met = true;
  }
}

// Whether its lanes have met at an instruction of the warp.
bool Block::meet_in_warp(Thread* lanes, size_t count) {
  size_t waiting = 0;
  for (size_t i = 0; i < count; ++i) waiting += lanes[i].waits == Meets::kWarp;
  if (waiting == 0) return false;
  for (size_t i = 0; i < kWarp; ++i) {
    if (waiting != kWarp || lanes[i].at != lanes[0].at) {
      fail("the lanes of a warp are not all at the same instruction of the warp, in block " +
           std::to_string(index));
    }
  }
  const Instruction& instruction = launch.kernel.code[lanes[0].at];
  try {
    (instruction.parts[0] == "shfl" ? shuffle : load_matrix)(instruction, lanes);
  } catch (const std::runtime_error& error) {
    fail_at(lanes[0], error);
  }
  for (size_t i = 0; i < kWarp; ++i) lanes[i].go_on();
  return true;
}

void Block::meet_at_barrier() {
  for (const Thread& thread : threads_) {
    if (thread.waits != Meets::kBlock || thread.at != threads_[0].at) {
      fail("thread " + std::to_string(thread.index) + " of block " + std::to_string(index) +
           " is not at the barrier at which others wait");
    }
  }
  ++barriers;
  seen.pass_barrier();
  for (Thread& thread : threads_) thread.go_on();
}

int64_t Launch::run() {
  int64_t at_work = 0;
  for (size_t i : any_order(blocks.count(), random)) at_work += Block(*this, unsigned(i)).run();
  return at_work;
}

}  // namespace ptx
