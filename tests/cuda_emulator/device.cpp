// In place of csrc/cuda/device.cpp; and what tests set of the emulator.
#include <dlfcn.h>

#include "backward_kernel.cuh"
#include "device.h"

namespace ndfast::cuda {
OnDevice::OnDevice(const Tensor& student) : launch_{student.get_device_index(), nullptr} {}
std::string why_unusable(int64_t) { return ""; }
}  // namespace ndfast::cuda

namespace {
void set_capture(int64_t id) { emulator::capture_id = id; }
void set_stream(int64_t id) { emulator::stream_id = id; }
void fail_next_launch() { emulator::fails_next_launch = true; }
// Of each launch since the last call a line: the kernel's mangled name, and its blocks at work.
std::string take_launched() {
  std::string lines;
  for (const auto& [kernel, at_work] : std::exchange(emulator::launched, {})) {
    Dl_info info;
    lines += dladdr(kernel, &info) && info.dli_sname ? info.dli_sname : "a kernel without a name";
    lines += ' ' + std::to_string(at_work) + '\n';
  }
  return lines;
}
int64_t even_blocks(int64_t tasks, int64_t most) { return ndfast::cuda::even_blocks(tasks, most); }
int64_t grid_of(int64_t blocks) { return ndfast::cuda::grid_of(blocks).x; }
// [parts, 3]: the number, the first row and the end of each part of a class.
ndfast::Tensor parts_of_class(int64_t begin, int64_t end) {
  const ndfast::cuda::ClassRows of_class{begin, end};
  const int64_t num_parts = of_class.is_cut() ? of_class.num_parts() : 1;
  const auto parts = torch::stable::empty({num_parts, 3}, ndfast::ScalarType::Long);
  auto* data = static_cast<int64_t*>(parts.data_ptr());
  for (int64_t i = 0; i < num_parts; ++i) {
    const int64_t number = of_class.first_part() + i;
    const auto [first, last] = of_class.part(number);
    for (int64_t value : {number, first, last}) *data++ = value;
  }
  return parts;
}
int64_t take_ticket() { return ndfast::cuda::take_ticket({0, nullptr}); }
}  // namespace

STABLE_TORCH_LIBRARY(ndfast_emulator, m) {
  m.def("set_capture(int id) -> ()");
  m.def("set_stream(int id) -> ()");
  m.def("fail_next_launch() -> ()");
  m.def("take_launched() -> str");
  m.def("even_blocks(int tasks, int most) -> int");
  m.def("grid_of(int blocks) -> int");
  m.def("parts_of_class(int begin, int end) -> Tensor");
  m.def("take_ticket() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(ndfast_emulator, CompositeExplicitAutograd, m) {
  m.impl("set_capture", TORCH_BOX(&set_capture));
  m.impl("set_stream", TORCH_BOX(&set_stream));
  m.impl("fail_next_launch", TORCH_BOX(&fail_next_launch));
  m.impl("take_launched", TORCH_BOX(&take_launched));
  m.impl("even_blocks", TORCH_BOX(&even_blocks));
  m.impl("grid_of", TORCH_BOX(&grid_of));
  m.impl("parts_of_class", TORCH_BOX(&parts_of_class));
  m.impl("take_ticket", TORCH_BOX(&take_ticket));
}
