// The device that a call's tensors are on.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <string>

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

// Why nothing can be launched on a device; empty where it can.
std::string why_unusable(int64_t device);

}  // namespace ndfast::cuda
