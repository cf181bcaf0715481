// What launches ask of the CUDA runtime, each device and kernel once.
#include "launch.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "arguments.h"

namespace ndfast::cuda {
namespace {

// A number for the graph that is being captured on the stream, 0 where none is.
unsigned long long capture_on(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  check(cudaStreamGetCaptureInfo(stream, &status, &capture), "asking for a capture");
  return status == cudaStreamCaptureStatusActive ? capture : 0;
}

// Not the stream's handle, which another stream gets when this one is gone, with work of its own
// still running. To ask a stream for its number while it is captured ends the capture by an error.
unsigned long long number_of(cudaStream_t stream) {
  unsigned long long number = 0;
  check(cudaStreamGetId(stream, &number), "asking for the stream's number");
  return number;
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // told once, not to whoever looks next
  // A kernel is loaded when it is first used, which drivers before CUDA 12.3 do in no capture.
  const char* advice = error == cudaErrorStreamCaptureUnsupported
                           ? "; before a CUDA graph is captured, run its step once outside"
                           : "";
  throw std::runtime_error(std::string("ndfast: CUDA error in ") + what + ": " +
                           cudaGetErrorString(error) + advice);
}

int num_sms(int device) {
  static std::mutex mutex;
  static std::map<int, int> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  int sms = 0;
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device),
        "asking for the number of multiprocessors");
  return known[device] = sms;
}

int64_t resident_blocks(const Launch& launch, const void* kernel, int threads) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int>, int64_t> known;
  const std::lock_guard lock(mutex);
  const std::tuple<const void*, int, int> key{kernel, threads, launch.device};
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0),
        "asking how many blocks are resident");
  return known[key] = int64_t(std::min(blocks, kMaxBlocksPerSm)) * num_sms(launch.device);
}

int32_t take_ticket(const Launch& launch) {
  struct Tickets {
    int32_t given = 0;
    std::map<std::pair<unsigned long long, unsigned long long>, int32_t> of_stream;
  };
  static std::mutex mutex;
  static std::map<int, Tickets> of_device;
  const unsigned long long capture = capture_on(launch.stream);
  const unsigned long long stream =
      capture == 0 ? number_of(launch.stream) : reinterpret_cast<uintptr_t>(launch.stream);

  const std::lock_guard lock(mutex);
  Tickets& tickets = of_device[launch.device];
  const auto found = tickets.of_stream.find({capture, stream});
  if (found != tickets.of_stream.end()) return found->second;
  if (tickets.given == kTickets) return -1;
  return tickets.of_stream[{capture, stream}] = tickets.given++;
}

}  // namespace ndfast::cuda
