// What Python and the CUDA emulator call.
#include <exception>
#include <memory>

#include "machine.h"

using namespace ptx;

namespace {

std::vector<std::unique_ptr<Module>> modules;
std::string error;
Traffic traffic;

template <class F>
int64_t or_error(const F& f) {
  try {
    return f();
  } catch (const std::exception& raised) {
    error = std::string("ptx: ") + raised.what();
    return -1;
  }
}

Module& module_with(const char* kernel) {
  for (auto module = modules.rbegin(); module != modules.rend(); ++module) {
    if (*module && (*module)->has(kernel)) return **module;
  }
  fail(std::string("no module has ") + kernel);
}

}  // namespace

extern "C" {

// Why the last call returned -1.
const char* ptx_error() { return error.c_str(); }

// Returns the number of the module made of a file of PTX, or -1.
int64_t ptx_load(const char* text) {
  return or_error([&] {
    modules.push_back(std::make_unique<Module>(text));
    return int64_t(modules.size()) - 1;
  });
}

// Counts from now on what is read of some ranges of addresses, and what is written in all.
void ptx_count(size_t num_ranges, const uint64_t* begins, const uint64_t* ends) {
  traffic = {};
  for (size_t i = 0; i < num_ranges; ++i) traffic.ranges.push_back({begins[i], ends[i]});
}

// The bytes counted so far: read of each range, then written.
void ptx_counted(uint64_t* bytes) {
  for (const Traffic::Range& range : traffic.ranges) *bytes++ = range.read;
  *bytes = traffic.written;
}

void ptx_unload(int64_t module) { modules.at(module) = nullptr; }

// Runs a kernel to its end: of one module, or with -1 of the last loaded that has it. The
// parameters are given by their addresses and sizes. Returns how many blocks came to a place where
// threads meet, or -1.
int64_t ptx_launch(int64_t module, const char* name, const unsigned* blocks,
                   const unsigned* threads, size_t shared_bytes, size_t num_parameters,
                   const void* const* parameters, const size_t* bytes, uint64_t seed) {
  return or_error([&] {
    const Kernel& kernel = (module < 0 ? module_with(name) : *modules.at(module)).kernel(name);
    Launch launch{kernel,
                  {{blocks[0], blocks[1], blocks[2]}},
                  {{threads[0], threads[1], threads[2]}},
                  shared_bytes,
                  std::vector<char>(kernel.parameter_bytes),
                  std::mt19937_64(seed),
                  GlobalMemory(traffic)};
    if (launch.threads.count() > kernel.most_threads) fail("more threads than the kernel is for");
    if (num_parameters != kernel.parameters.size()) fail("another number of parameters");
    for (size_t i = 0; i < num_parameters; ++i) {
      if (bytes[i] != kernel.parameters[i].bytes) fail("a parameter of another size");
      std::memcpy(&launch.parameters[kernel.parameters[i].offset], parameters[i], bytes[i]);
    }
    return launch.run();
  });
}
}
