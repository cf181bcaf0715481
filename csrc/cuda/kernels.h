// The kernels as the host calls them: each picks its layout and launches once.
#pragma once

#include <string>

#include "arguments.h"
#include "launch.h"

namespace ndfast::cuda {

// Rows of type S, float sums. False, and nothing is launched, where types or alignment ask for the
// plain path.
template <class S>
bool forward_rows(const ForwardArguments<float>& p, const Launch& launch);
template <class S>
bool backward_rows(const BackwardArguments<float>& p, const Launch& launch);

// One of them, to ask whether the GPU can run what has been compiled.
const void* any_kernel();

// Which GPUs they have been compiled for, as "800,900": ten times the number behind sm_.
std::string architectures();

// Rows of any types and alignment, an element at a time; T is the type of the sums.
template <class T>
void forward_plain(const ForwardArguments<T>& p, const Launch& launch);
template <class T>
void backward_plain(const BackwardArguments<T>& p, const Launch& launch);

}  // namespace ndfast::cuda
