// The device that a call's tensors are on.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <string>
#include <tuple>

#include "launch.h"
#include "tensors.h"

namespace ndfast::cuda {

// Makes the student's device current for the time of a call, and knows the stream to launch on.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& student);
  const Launch& launch() const { return launch_; }

 private:
  // Only the tests' emulator goes without.
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  Launch launch_;
};

// Why nothing can be launched on a device; empty where it can. Throws in a capture that keeps the
// kernels from being loaded, for at another time they may be.
std::string why_unusable(int64_t device);

// The CUDA version of the runtime in this library, as 1000 * major + 10 * minor; the least release
// of NVIDIA's driver that it takes, 0 where that was not known yet; and the CUDA version that the
// driver is for, 0 without one. Neither a GPU nor a driver is needed to ask.
std::tuple<int64_t, int64_t, int64_t> versions();

}  // namespace ndfast::cuda
