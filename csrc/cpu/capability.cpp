// Which instruction set the row passes use, chosen at run time.
#include <atomic>

#include "row_kernels.h"

namespace ndfast::cpu {
namespace {

enum Capability { kPortable, kAvx2, kAvx512 };
constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

Capability highest() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has_avx2 && has_avx512 ? kAvx512 : has_avx2 ? kAvx2 : kPortable;
#else
  return kPortable;
#endif
}

std::atomic<Capability>& current() {
  static std::atomic<Capability> capability{highest()};
  return capability;
}

}  // namespace

template <class T>
const RowKernels<T>& row_kernels() {
#ifdef __x86_64__
  switch (current().load(std::memory_order_relaxed)) {
    case kAvx512: return avx512::kernels<T>();
    case kAvx2: return avx2::kernels<T>();
    case kPortable: break;
  }
#endif
  return portable::kernels<T>();
}
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

std::string capability() { return kNames[current().load()]; }

bool set_capability(const std::string& name) {
  for (int i = 0; i <= highest(); ++i) {
    if (name == kNames[i]) {
      current().store(Capability(i));
      return true;
    }
  }
  return false;
}

}  // namespace ndfast::cpu
