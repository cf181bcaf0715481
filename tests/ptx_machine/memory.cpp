#include "memory.h"

#include <cstring>

#include "program.h"

// AddressSanitizer's, where the process has it.
extern "C" __attribute__((weak)) void* __asan_region_is_poisoned(void* begin, size_t bytes);

namespace ptx {
namespace {

std::string of(const Place& place) {
  return "thread " + std::to_string(place.thread) + " of block " + std::to_string(place.block);
}

void check_alignment(const Access& access) {
  if (access.address % access.bytes != 0) {
    fail(std::to_string(access.bytes) + " bytes at an address that is no multiple of that");
  }
}

void merge(GlobalMemory::Horizons& into, const GlobalMemory::Horizons& from) {
  for (const auto& [block, horizon] : from) {
    const auto [mine, is_new] = into.emplace(block, horizon);
    if (!is_new && mine->second.barriers < horizon.barriers) mine->second = horizon;
  }
}

bool covers(const GlobalMemory::Horizons& horizons, const Place& write) {
  const auto found = horizons.find(write.block);
  if (found == horizons.end()) return false;
  const auto [barriers, thread] = found->second;
  return write.barriers < barriers || (write.barriers == barriers && write.thread == thread);
}

}  // namespace

char* SharedMemory::reach(const Access& access, const Place& place) {
  const auto [address, bytes, way, written] = access;
  check_alignment(access);
  if (address + bytes > data_.size()) fail("out of the block's shared memory");
  const int me = place.thread;
  for (size_t i = 0; i < bytes; ++i) {
    Byte& byte = bytes_[address + i];
    const bool is_same = way == Way::kWrite && data_[address + i] == written[i];
    if (byte.written == place.barriers && byte.writer != me && !is_same) {
      fail("a race in shared memory with thread " + std::to_string(byte.writer) + ", which wrote");
    }
    if (way == Way::kWrite) {
      if (byte.read == place.barriers && (byte.reader != me || byte.has_readers) && !is_same) {
        fail("a race in shared memory with thread " + std::to_string(byte.reader) + ", which read");
      }
      byte.writer = me;
      byte.written = place.barriers;
    } else {
      if (byte.writer < 0) fail("shared memory is read that nobody has written");
      byte.has_readers = byte.read == place.barriers && (byte.has_readers || byte.reader != me);
      byte.reader = me;
      byte.read = place.barriers;
    }
  }
  return data_.data() + address;
}

void GlobalMemory::Seen::pass_barrier() {
  for (const auto& [thread, horizons] : of_thread) merge(all, horizons);
  of_thread.clear();
}

void Traffic::count(const Access& access) {
  if (access.way == Way::kWrite) {
    written += access.bytes;
    return;
  }
  for (Range& range : ranges) {
    if (access.address >= range.begin && access.address < range.end) range.read += access.bytes;
  }
}

char* GlobalMemory::reach(const Access& access, const Place& place, const Seen& seen) {
  const auto [address, bytes, way, written] = access;
  check_alignment(access);
  char* data = reinterpret_cast<char*>(address);
  if (address < kPage) fail("a null pointer");
  if (__asan_region_is_poisoned && __asan_region_is_poisoned(data, bytes) != nullptr) {
    fail("out of bounds of a tensor");
  }
  traffic_.count(access);
  Page* page = page_with(address, way == Way::kWrite);
  if (page == nullptr) return data;
  const bool is_same = way == Way::kWrite && std::memcmp(data, written, bytes) == 0;
  const size_t first = address % kPage / 2, count = (bytes + 1) / 2;
  for (size_t i = first; i < first + count; ++i) {
    Place& writer = (*page)[i];
    if (writer.block >= 0) {
      if (way == Way::kReadOnly) fail("read as read-only, and written by " + of(writer));
      if (!is_same && !is_in_order(writer, place, seen)) {
        fail("a race in global memory with " + of(writer) + ", which wrote");
      }
    }
    if (way == Way::kWrite) writer = place;
  }
  return data;
}

// The page that an address is in; null where nothing was written to it. An access is aligned, and
// so in one page.
GlobalMemory::Page* GlobalMemory::page_with(uint64_t address, bool is_written) {
  const uint64_t number = address / kPage;
  if (number == last_number_ && (last_ != nullptr || !is_written)) return last_;
  last_number_ = number;
  const auto found = pages_.find(number);
  last_ = found != pages_.end() ? &found->second : is_written ? &pages_[number] : nullptr;
  return last_;
}

bool GlobalMemory::is_in_order(const Place& writer, const Place& place, const Seen& seen) const {
  if (writer.block == place.block) {
    return writer.thread == place.thread || writer.barriers < place.barriers;
  }
  const auto mine = seen.of_thread.find(place.thread);
  return covers(seen.all, writer) || (mine != seen.of_thread.end() && covers(mine->second, writer));
}

void GlobalMemory::synchronize(uint64_t address, const Place& place, Seen& seen) {
  Horizons& released = released_[address];
  Horizons& mine = seen.of_thread[place.thread];
  merge(mine, released);
  merge(released, seen.all);
  merge(released, mine);
  released[place.block] = {place.barriers, place.thread};
}

}  // namespace ptx
