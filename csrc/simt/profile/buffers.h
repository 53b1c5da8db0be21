// What is known about memory beyond a launch: who has written it, and which operations of streams use it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../runtime.h"

namespace simt {

struct Range {
  uintptr_t begin, end;
};

struct Page;
struct Histories {  // of a buffer, by pages; see history.cpp
  std::vector<Page*> at;
  void clear();
  Histories() = default;
  Histories(Histories&& other) noexcept : at(std::move(other.at)) { other.at.clear(); }
  Histories& operator=(Histories&& other) noexcept {
    at.swap(other.at);
    return *this;
  }
  ~Histories() { clear(); }
};

using Clock = std::map<const void*, uint32_t>;           // of each stream: how many operations are known to be over
struct Operation {  // a launch, copy or set in a stream
  const void* stream = nullptr;
  uint32_t number = 0;
  std::string name;
  std::vector<Range> read, written;
  bool meets(uintptr_t begin, uintptr_t end, bool writes) const;
};

struct Turn {  // a block begins, or goes on behind a grid's barrier
  uint32_t epoch;
  uint3 block;
};

enum class Fill : unsigned char { none, ones, scattered };  // what memory holds that nobody has written; none: all is written

struct Buffer {  // watched global memory, one bit per byte for what this launch has read and written
  uintptr_t begin, end;
  std::string name;
  std::vector<uint64_t> touched[2];
  bool variable = false;                                 // of the program, nobody asked for it to be watched
  Fill fill = Fill::none;
  std::vector<uint64_t> written;                         // one bit per byte since it was allocated
  Histories history;
};
using Bits = std::vector<uint64_t>;
uint64_t set_bits(Bits& bits, size_t from, size_t count);  // how many were not yet set; now they are

struct Local {  // a variable of a thread that began without a value
  uintptr_t begin, end;
  const char* name;
  Bits written;
};

}  // namespace simt
