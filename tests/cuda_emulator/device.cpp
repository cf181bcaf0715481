// In place of csrc/cuda/device.cpp; and what tests set of the emulator.
#include <dlfcn.h>

#include "device.h"

// Of tests/ptx_machine/launch.cpp.
extern "C" const char* ptx_error();
extern "C" int64_t ptx_launch(int64_t module, const char* name, const unsigned* blocks,
                              const unsigned* threads, size_t shared_bytes, size_t num_parameters,
                              const void* const* parameters, const size_t* bytes, uint64_t seed);

namespace ndfast::cuda {
OnDevice::OnDevice(const Tensor& student) : launch_{student.get_device_index(), nullptr} {}
std::string why_unusable(int64_t) { return ""; }
std::tuple<int64_t, int64_t, int64_t> versions() { return {}; }
}  // namespace ndfast::cuda

namespace {
void set_capture(int64_t id) { emulator::capture_id = id; }
void set_stream(int64_t id) { emulator::stream_id = id; }
void fail_next_launch(int64_t error) { emulator::next_launch_fails_by = cudaError_t(error); }
// Mangled.
std::string name_of(const void* kernel) {
  Dl_info info;
  return dladdr(kernel, &info) && info.dli_sname ? info.dli_sname : "a kernel without a name";
}
// Of each launch since the last call a line: the kernel's name, and its blocks at work.
std::string take_launched() {
  std::string lines;
  for (const auto& [kernel, at_work] : std::exchange(emulator::launched, {})) {
    lines += name_of(kernel) + ' ' + std::to_string(at_work) + '\n';
  }
  return lines;
}
// Has the library of tests/ptx_machine run what nvcc made of the kernels; "": they run as C++.
void run_compiled_by(std::string path, int64_t seed) {
  emulator::run_compiled = nullptr;
  if (path.empty()) return;
  void* library = dlopen(path.c_str(), RTLD_NOW);
  auto* launch = reinterpret_cast<decltype(&ptx_launch)>(dlsym(library, "ptx_launch"));
  auto* error = reinterpret_cast<decltype(&ptx_error)>(dlsym(library, "ptx_error"));
  emulator::run_compiled = [=](const void* kernel, dim3 blocks, dim3 threads, const void* argument,
                               size_t bytes) {
    const int64_t at_work =
        launch(-1, name_of(kernel).c_str(), &blocks.x, &threads.x, 0, 1, &argument, &bytes, seed);
    if (at_work < 0) throw std::runtime_error(error());
    return at_work;
  };
}
int64_t even_blocks(int64_t tasks, int64_t most) { return ndfast::cuda::even_blocks(tasks, most); }
int64_t take_ticket(int64_t handle) {
  return ndfast::cuda::take_ticket({0, reinterpret_cast<cudaStream_t>(handle)});
}
}  // namespace

STABLE_TORCH_LIBRARY(ndfast_emulator, m) {
  m.def("set_capture(int id) -> ()");
  m.def("set_stream(int id) -> ()");
  m.def("fail_next_launch(int error) -> ()");
  m.def("run_compiled_by(str library, int seed) -> ()");
  m.def("take_launched() -> str");
  m.def("even_blocks(int tasks, int most) -> int");
  m.def("take_ticket(int handle=0) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(ndfast_emulator, CompositeExplicitAutograd, m) {
  m.impl("set_capture", TORCH_BOX(&set_capture));
  m.impl("set_stream", TORCH_BOX(&set_stream));
  m.impl("fail_next_launch", TORCH_BOX(&fail_next_launch));
  m.impl("run_compiled_by", TORCH_BOX(&run_compiled_by));
  m.impl("take_launched", TORCH_BOX(&take_launched));
  m.impl("even_blocks", TORCH_BOX(&even_blocks));
  m.impl("take_ticket", TORCH_BOX(&take_ticket));
}
