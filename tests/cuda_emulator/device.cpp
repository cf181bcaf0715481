// In place of csrc/cuda/device.cpp; and what tests set of the emulator.
#include <dlfcn.h>

#include "device.h"

namespace ndfast::cuda {
OnDevice::OnDevice(const Tensor& student) : launch_{student.get_device_index(), nullptr} {}
std::string why_unusable(int64_t) { return ""; }
}  // namespace ndfast::cuda

namespace {
void set_capture(int64_t id) { emulator::capture_id = id; }
void set_stream(int64_t id) { emulator::stream_id = id; }
void fail_next_launch() { emulator::fails_next_launch = true; }
// The mangled names of the kernels since the last call, a line each.
std::string take_launched() {
  std::string names;
  for (const void* kernel : std::exchange(emulator::launched, {})) {
    Dl_info info;
    names += dladdr(kernel, &info) && info.dli_sname ? info.dli_sname : "a kernel without a name";
    names += '\n';
  }
  return names;
}
int64_t even_blocks(int64_t tasks, int64_t most) { return ndfast::cuda::even_blocks(tasks, most); }
int64_t take_ticket() { return ndfast::cuda::take_ticket({0, nullptr}); }
}  // namespace

STABLE_TORCH_LIBRARY(ndfast_emulator, m) {
  m.def("set_capture(int id) -> ()");
  m.def("set_stream(int id) -> ()");
  m.def("fail_next_launch() -> ()");
  m.def("take_launched() -> str");
  m.def("even_blocks(int tasks, int most) -> int");
  m.def("take_ticket() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(ndfast_emulator, CompositeExplicitAutograd, m) {
  m.impl("set_capture", TORCH_BOX(&set_capture));
  m.impl("set_stream", TORCH_BOX(&set_stream));
  m.impl("fail_next_launch", TORCH_BOX(&fail_next_launch));
  m.impl("take_launched", TORCH_BOX(&take_launched));
  m.impl("even_blocks", TORCH_BOX(&even_blocks));
  m.impl("take_ticket", TORCH_BOX(&take_ticket));
}
