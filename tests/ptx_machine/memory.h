// Memory that looks at every access: as racecheck, memcheck and initcheck of a GPU's tools do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace ptx {

enum class Way { kRead, kReadOnly, kWrite };

// An access to memory: a read, or a write of some bytes.
struct Access {
  uint64_t address;
  size_t bytes;
  Way way;
  const char* written = nullptr;
};

// A place in the program of a launch: a thread of a block, between two barriers.
struct Place {
  int block = -1;  // nobody's
  int thread = -1;
  int barriers = -1;  // that the block has passed
};

// A block's. Throws where a byte is read before it is written, or where two threads meet at one
// that one of them writes, with no barrier between; two may write the same.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : data_(bytes), bytes_(bytes) {}
  char* reach(const Access& access, const Place& place);

 private:
  struct Byte {
    int writer = -1;
    int reader = -1;
    int written = -1;  // after so many barriers
    int read = -1;
    bool has_readers = false;  // more than one
  };
  std::vector<char> data_;
  std::vector<Byte> bytes_;
};

// What launches move, in bytes, counted as threads ask for them.
struct Traffic {
  struct Range {
    uint64_t begin;
    uint64_t end;
    uint64_t read = 0;
  };
  std::vector<Range> ranges;
  uint64_t written = 0;  // in all

  void count(const Access& access);
};

// The process's. Throws where AddressSanitizer, if it is there, knows that an access is out of
// bounds; where what a launch has written is read by a way that need not see it; and where another
// thread reads or writes it that nothing has put in order with the first: no barrier of their
// block, no release and acquire between two blocks. Two may write the same. A read that comes
// before such a write is not seen: in another order of the threads, which each seed has, it comes
// after.
class GlobalMemory {
 public:
  // How much of other blocks' work one may rely on: of each, what came before so many barriers, and
  // of one of its threads also what came after.
  struct Horizon {
    int barriers;
    int thread;
  };
  using Horizons = std::unordered_map<int, Horizon>;
  // Of a block: what all its threads rely on, and what one of them does until the next barrier.
  struct Seen {
    Horizons all;
    std::unordered_map<int, Horizons> of_thread;
    void pass_barrier();
  };

  explicit GlobalMemory(Traffic& traffic) : traffic_(traffic) {}
  char* reach(const Access& access, const Place& place, const Seen& seen);
  // An atomic operation that releases what the thread relies on, and acquires what was released.
  void synchronize(uint64_t address, const Place& place, Seen& seen);

 private:
  // Who wrote last to each two bytes of a page: no access is narrower, or at an odd address.
  static constexpr uint64_t kPage = 4096;
  using Page = std::array<Place, kPage / 2>;
  Page* page_with(uint64_t address, bool is_written);
  bool is_in_order(const Place& writer, const Place& place, const Seen& seen) const;

  Traffic& traffic_;
  std::unordered_map<uint64_t, Page> pages_;
  uint64_t last_number_ = 0;  // of the page that was asked for last
  Page* last_ = nullptr;
  std::unordered_map<uint64_t, Horizons> released_;
};

}  // namespace ptx
