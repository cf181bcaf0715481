// The device that a call's tensors are on.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "launch.h"
#include "tensors.h"

namespace ndfast::cuda {

// Makes the student's device current for the time of a call, and knows the stream to launch on.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& student);
  const Launch& launch() const { return launch_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  Launch launch_;
};

}  // namespace ndfast::cuda
