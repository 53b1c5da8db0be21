// What is known about one launch while it runs. The compiler's thread-sanitizer calls arrive in accesses.cpp; groups of
// lanes become requests in requests.cpp; the history of shared memory is kept in shadow.cpp; whose memory an address is says
// spaces.cpp; words and JSON are made in report.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../scheduler.h"
#include "buffers.h"

namespace simt {

enum Space { kGlobal, kShared };
constexpr int kSector = 32, kBanks = 32;                 // bytes; banks of 4 bytes
constexpr uint32_t kPatience = 4096;                     // accesses after which a lane gives way to the others

struct Counters {  // of one place in the source, for one kind of access
  uint64_t requests = 0, lanes = 0, bytes = 0;           // warp instructions; lanes that took part; bytes they asked for
  uint64_t sectors = 0, ideal_sectors = 0;               // global: 32-byte pieces fetched; the fewest that hold the bytes
  uint64_t compulsory = 0;                               // global: bytes that nobody in this launch had touched before
  uint64_t wavefronts = 0, conflicts = 0;                // shared: passes over the banks; those beyond the fewest
  void add(const Counters& other);
};

struct Pattern {  // the first request of a site, for pictures
  uint32_t mask = 0;
  uint64_t offset[kWarp];                                // bytes into its buffer, or into shared memory
};

struct Request {
  uint32_t mask, step;                                   // lanes so far; accesses that the busiest of them had made
  uintptr_t base;
  uint32_t offset[kWarp];                                // from there; small, since many requests are open at a time
  uintptr_t address(int lane) const { return base + offset[lane]; }
};

struct Site;
struct Lanes {  // of one warp at one site: the n-th execution by each lane together is the n-th request
  uint32_t times[kWarp] = {}, first = 0, unfinished = 0;
  std::vector<Request> open;
  Site* site;
  bool listed = false;
};

struct Site {  // one load or store instruction
  const char* pc;
  Op op;
  Space space;
  int bytes;
  uint32_t number;
  bool is_volatile = false;
  Counters counters;
  Pattern pattern;
  std::unique_ptr<Lanes> warp[kMaxWarps];
};

struct Mark {  // who touched a word of shared memory, and when
  uint32_t epoch = 0, clock = 0;                         // barriers passed; meetings of its warp
  uint16_t thread = 0;
  uint32_t site = 0;
};

struct Fenced {  // of one thread; see order.cpp
  std::vector<uint32_t> known, seen, released;           // of each thread: for sure, once this one fences, when it last did
};
struct Fences {
  bool used = false;
  Fenced thread[kMaxThreads];
  std::map<const void*, std::vector<uint32_t>> word;     // what atomics on it pass on
  void forget();
};

struct Cell {
  Mark writer, reader[2];
  bool split = false;                                    // the word's four bytes have cells of their own
  uint32_t in_flight = 0;                                // of this block_epoch: a cp.async is to arrive here
};

struct ThreadLocal {  // a __shared__ variable; offset into the module's thread-local memory
  size_t offset, bytes;
  std::string name;
};
struct ThreadLocals {
  std::vector<ThreadLocal> variables;
  std::vector<unsigned char> room;                       // for each byte: how many from here are in __shared__ variables
  size_t begin = 0, end = 0;                             // of the memory that holds all variables
  bool known = false;                                    // the symbols could be read
};
constexpr size_t kNotShared = ~size_t{0};
constexpr unsigned char kMostRoom = 254, kEmulators = 255;  // at most so many are counted; of threadIdx and its like

struct Event {  // a barrier, or a meeting of lanes
  const char* what;
  uint64_t times = 0, lanes = 0;
};

struct Finding {
  std::string kind, text;                                // %0 and %1 stand for the places of site and other
  const char *pc = nullptr, *other_pc = nullptr;
  Where where = {nullptr, 0};                            // instead of pc, where it is known
  uint3 block, thread;
  std::string kernel;                                    // empty: the host's code
  uint64_t times = 1;
};

struct Kernel {  // launches of one kernel, added up
  std::string name;
  dim3 grid, block;
  uint64_t launches = 0, shared_bytes = 0;
  std::map<uint32_t, std::pair<Counters, Pattern>> sites;
  std::map<std::pair<std::string, int>, std::map<std::string, Event>> events;
  std::vector<std::pair<uint32_t, uint32_t>> timeline;   // (site, lanes), requests of the first warp in order
};

class Profiler {
 public:
  template <Op op>
  void note(const void* address, int bytes, bool aligned, const void* pc);  // a kernel's access, just before it happens
  void note_shared(uintptr_t address, size_t offset, int bytes, Op op, const void* pc);
  void note_global(uintptr_t address, int bytes, Op op, const void* pc);

  // spaces.cpp
  void find_memory();
  size_t shared_offset(uintptr_t address, int bytes) const {  // into static shared memory, behind which lies the dynamic
    const uintptr_t local = address - locals, given = address - dynamic;
    if (local < locals_bytes) return room[local] >= std::min(bytes, int{kMostRoom}) ? address - statics : kNotShared;
    return given < dynamic_bytes && uintptr_t(bytes) <= dynamic_bytes - given ? dynamic_offset + given : kNotShared;
  }

  // written.cpp
  void allocate(uintptr_t address, size_t bytes, const char* name, Fill fill);
  void note_written(Buffer& buffer, uintptr_t address, int bytes, Op op, const void* pc);
  bool is_unwritten(const Buffer& buffer, size_t at, size_t bytes) const;
  const Buffer* freed_at(uintptr_t address) const;

  // history.cpp
  void begin_history();
  void begin_turn();
  void order_blocks(const void* word, bool changes);
  bool released(const Mark& mark) const;
  bool is_conflict(const Mark& mark, const Site& site) const;
  void note_history(Buffer& buffer, uintptr_t address, int bytes, const Site& site);
  void look_global(Cell& cell, const Site& site, uintptr_t address, int bytes);

  // streams.cpp
  void enqueue(const void* stream, const std::string& name);
  void launched();
  void keep_operation();
  void host_waits(const Clock& clock);
  void note_rivals(uintptr_t begin, int bytes, Op op, const void* pc);
  void note_running(uintptr_t begin, int bytes, Op op, const void* pc);

  // local.cpp
  void begin_local(uintptr_t address, size_t bytes, const char* name);
  void end_local(uintptr_t address);
  void note_local(uintptr_t address, int bytes, Op op, const void* pc);

  // heap.cpp
  void asked_for(void* memory, size_t bytes, const void* pc);
  void given_back(void* memory);
  bool in_heap(uintptr_t address, int bytes) const;

  // on_host.cpp
  void note_host(uintptr_t address, int bytes, Op op, const void* pc);
  void copied(uintptr_t to, uintptr_t from, size_t bytes);
  void forget_stale(uintptr_t begin, uintptr_t end);

  // requests.cpp
  Site& site_of(const void* pc, Op op, Space space, int bytes);
  void group(Site& site, uintptr_t address);
  void close(Site& site, Request& request, int warp);
  void count_global(Site& site, const Request& request);
  void count_shared(Site& site, const Request& request);
  void flush(int warp);
  void fold();

  // shadow.cpp
  void make_shadow(size_t bytes);
  void shadow(size_t offset, int bytes, const Site& site, uintptr_t address);
  void look(Cell& cell, const Site& site, uintptr_t address, int bytes);
  bool unordered(const Mark& mark) const;
  void race(const char* how, const Mark& earlier, const Site& site);
  void settle();
  void suspect(int reader, const Cell& cell, const Site& site, const Mark& earlier, const char* how);
  void report_suspects();
  void meet(int warp, uint32_t lanes);
  void fly(const AsyncCopy& copy, bool begins);

  // order.cpp
  void fence();
  void sync_by(const void* address);
  void share_known(int warp, uint32_t lanes);
  bool knows_of(const Mark& mark) const;

  // report.cpp
  Finding& find(const char* kind, const void* pc, const void* other_pc, const std::string& text);
  [[noreturn]] void stop(const char* kind, const void* pc, const std::string& text);
  uint3 index_of(int thread) const;
  Buffer* buffer_of(uintptr_t address, int bytes);
  std::string distance(uintptr_t address) const;
  std::string json();

  bool wanted = false, active = false;                   // between start and stop; and inside a kernel
  int thread = 0, warp = 0, lane = 0;                    // who runs
  uintptr_t last_load = 0;                               // address and bytes, with nothing after it
  uintptr_t stack = 0, host_stack = 0, host_stack_bytes = 0;
  uintptr_t locals = 0, locals_bytes = 0;                // the module's thread-local memory
  const unsigned char* room = nullptr;                   // of its bytes, see ThreadLocals
  uintptr_t statics = 0, statics_bytes = 0;              // what of it holds the static shared memory
  uintptr_t dynamic = 0, dynamic_bytes = 0, dynamic_offset = 0;
  uintptr_t constants = 0, constants_end = 0;            // the module's read-only data
  uint32_t gone[kMaxWarps], steps[kMaxThreads], patience = 0;
  std::vector<std::unique_ptr<Site>> sites;
  std::vector<std::pair<uintptr_t, Site*>> table;        // open addressing, by pc and kind
  std::vector<Lanes*> listed[kMaxWarps];
  std::vector<Buffer> buffers;                           // by address
  Buffer* last_buffer = nullptr;
  std::vector<Local> local_variables[kMaxThreads];
  Clock host_clock;
  std::map<const void*, Clock> stream_clocks = {{nullptr, {}}}, event_clocks;
  std::set<const void*> unblocked;                       // streams that do not wait for the default stream
  std::vector<std::shared_ptr<Operation>> operations, rivals;  // that the host has not waited for; of these: beside this one
  Operation now_running;
  std::map<uintptr_t, size_t> heap;                      // what kernels asked for themselves: address -> bytes
  std::vector<Buffer> freed;                             // what they lay in is not used again as long as they are here
  size_t freed_bytes = 0;
  std::vector<Range> stale;                              // memory of the host that was copied from where nobody had written
  std::atomic<bool> host_matters{false};                 // there is such memory, or memory that host and device share
  std::mutex host_alone;
  bool bounded = false;                                  // somebody watches: all else is out of bounds

  uint32_t epoch = 1, block_epoch = 1, launch_epoch = 1, turn_epoch = 1;
  uint32_t fenced = 0;                                   // the epoch in which this block last passed a fence, or 0
  bool is_volatile = false;                              // the access that is noted
  std::vector<Turn> turns;                               // of this launch, by epoch
  std::unordered_map<const void*, std::map<uint32_t, uint32_t>> releases;  // word -> turn -> up to which epoch
  std::unordered_set<const void*> used_words;            // in this turn, by atomics and volatile accesses
  uint32_t clock[kMaxWarps], all_met[kMaxWarps];
  uint32_t met[kMaxWarps][kWarp][kWarp];                 // met[w][a][b]: up to which meeting a knows of b
  bool met_in_part[kMaxWarps];
  Fences fences;
  std::unique_ptr<Cell[], void (*)(void*)> cells{nullptr, std::free};  // one a word, then four a word
  size_t words = 0;
  struct {  // two threads stored to one word at one place: a race unless the values agree, seen once the store is done
    const void* address = nullptr;
    int bytes;
    unsigned char old[16];
    Mark earlier;
    const Site* site;
    int thread;
    const char* how;
  } doubt;

  struct Suspect {
    int thread;
    const Site* site;
    Mark earlier;
    const char* how;
  };
  std::map<std::pair<int, const Cell*>, Suspect> suspects;  // a plain load beside an atomic, by the thread that loads

  Kernel* kernel = nullptr;
  const LaunchConfig* config = nullptr;
  bool timed = false;                                    // the timeline is being drawn: first warp of the first block
  std::vector<std::pair<uint32_t, std::pair<uint32_t, uint32_t>>> pending;
  std::map<std::string, Kernel> kernels;
  std::vector<Finding> findings;
  std::mutex one_at_a_time;
};

extern Profiler profiler;
const ThreadLocals& thread_locals();

std::string text_of(uint3 index);
std::string verb(Op op);            // "reads " ...
const char* stand_in(Where where);  // for the instruction, where the place of a call is known instead
std::vector<std::string> places_of(const std::vector<const char*>& pcs);  // "file:line", outside the emulator

}  // namespace simt
