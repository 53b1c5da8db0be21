// Numbers that do not fit the integer they are converted to: a GPU saturates and makes 0 of NaN, x86's instructions do not.
//
// Compiled with -fsanitize=float-cast-overflow (and without its library), g++ checks each conversion of a kernel, written or
// implied, and calls us before one whose number does not fit. What we cannot do is return the right integer: the compiler's
// own instruction follows. So from here on the thread runs one instruction at a time (the processor's trap flag), until
// that instruction has been executed and its result can be replaced. Other processors than x86 saturate by themselves.
//
// The rule is nvcc's: cvt.rzi.s32, .u32, .s64 or .u64, and of the result the lower bits where the integer is narrower.

#include <cmath>
#include <limits>

#include "scheduler.h"

#if defined(__x86_64__) && defined(__linux__)

#include <signal.h>
#include <ucontext.h>

namespace simt {

struct CastType {  // as the compiler describes it
  uint16_t kind, info;  // of an integer: 2 log2(bits) + (signed); of a floating-point number: bits
  bool is_signed() const { return info & 1; }
  int bits() const { return kind == 0 ? 1 << (info >> 1) : info; }
};
struct CastData {
  const char* file;
  uint32_t line, column;
  const CastType *from, *to;
};

struct Cast {  // under way
  bool under_way;
  double operand;    // what the instruction reads
  uint64_t result;   // what it is to give
  int at;            // the register that its result is in, once it has been executed; -1: not yet
  int steps;
};
static thread_local Cast cast;
bool casting = false;  // some thread is; for the profiler, which is not to be run one instruction at a time

template <class T>
static T saturated(double value) {
  if (value != value) return 0;
  if (value <= double(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (value >= double(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return T(value);
}

static uint64_t as_a_gpu(double value, const CastType& to) {
  if (to.bits() == 64) return to.is_signed() ? uint64_t(saturated<int64_t>(value)) : saturated<uint64_t>(value);
  return to.is_signed() ? uint32_t(saturated<int32_t>(value)) : saturated<uint32_t>(value);
}

// ---- cvttss2si and cvttsd2si (with -mfma their forms in VEX), the only instructions that g++ makes of a conversion

struct Convert {
  bool is_one, is_double;
  int target;
  double value;  // of its operand
};

static const int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// The address that the bytes behind an opcode name (Intel SDM volume 2, tables 2-2 and 2-3).
static uint64_t operand_address(const unsigned char* modrm, int rex, const greg_t* registers) {
  const int mode = *modrm >> 6, low = *modrm & 7;
  const unsigned char* next = modrm + 1;
  uint64_t address = 0;
  bool relative = mode == 0 && low == 5, bare = false;
  if (low == 4) {
    const int sib = *next++, index = (sib >> 3 & 7) | (rex & 2) << 2, base = (sib & 7) | (rex & 1) << 3;
    bare = mode == 0 && (sib & 7) == 5;
    if (!bare) address = uint64_t(registers[kRegisters[base]]);
    if (index != 4) address += uint64_t(registers[kRegisters[index]]) << (sib >> 6);
  } else if (!relative) {
    address = uint64_t(registers[kRegisters[low | (rex & 1) << 3]]);
  }
  if (mode == 1) return address + uint64_t(int64_t(int8_t(*next)));
  if (mode == 0 && !relative && !bare) return address;
  int32_t distance;
  std::memcpy(&distance, next, 4);
  if (relative) address = reinterpret_cast<uint64_t>(next + 4);
  return address + uint64_t(int64_t(distance));
}

// F3 or F2 (of a double), perhaps a REX byte, 0F 2C; or the same in the two VEX forms, where the bits of REX are inverted.
static Convert convert_at(const unsigned char* code, const mcontext_t& machine) {
  int rex = 0, prefix = 0;  // 2 for F3, 3 for F2, as VEX says it
  if (*code == 0xc5) {
    rex = code[1] & 0x80 ? 0 : 4, prefix = code[1] & 3, code += 2;
  } else if (*code == 0xc4 && (code[1] & 0x1f) == 1) {
    rex = ~code[1] >> 5 & 7, prefix = code[2] & 3, code += 3;
  } else if (*code == 0xf2 || *code == 0xf3) {
    prefix = *code++ == 0xf2 ? 3 : 2;
    if ((*code & 0xf0) == 0x40) rex = *code++;
    if (*code++ != 0x0f) return {};
  }
  if (prefix < 2 || *code != 0x2c) return {};
  const unsigned char* modrm = code + 1;
  Convert found{true, prefix == 3, (*modrm >> 3 & 7) | (rex & 4) << 1, 0};
  const void* operand = &machine.fpregs->_xmm[(*modrm & 7) | (rex & 1) << 3];
  if (*modrm >> 6 != 3) operand = reinterpret_cast<const void*>(operand_address(modrm, rex, machine.gregs));
  float single;
  std::memcpy(&single, operand, 4);
  if (found.is_double) std::memcpy(&found.value, operand, 8);
  else found.value = single;
  return found;
}

// ---- one instruction at a time

constexpr greg_t kTrapFlag = 0x100;
constexpr int kMostSteps = 400;  // to the instruction; where it does not come, nobody needs its result

static bool same(double a, double b) { return std::memcmp(&a, &b, 8) == 0 || (a != a && b != b); }

static void step(int, siginfo_t*, void* context) {
  mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  if (!cast.under_way || !casting) return void(machine.gregs[REG_EFL] &= ~kTrapFlag);
  if (cast.at >= 0) {
    machine.gregs[kRegisters[cast.at]] = greg_t(cast.result);
    cast.under_way = false;
  } else {
    const Convert here = convert_at(reinterpret_cast<const unsigned char*>(machine.gregs[REG_RIP]), machine);
    if (here.is_one && same(here.value, cast.operand)) cast.at = here.target;
    if (++cast.steps > kMostSteps) cast.under_way = false;
  }
  casting = cast.under_way;
  if (casting) machine.gregs[REG_EFL] |= kTrapFlag;
  else machine.gregs[REG_EFL] &= ~kTrapFlag;
}

void go_on_casting() {
  casting = true;
  __asm__ volatile("int3");  // `step` is called now, and then after each instruction
}

static bool listen() {
  struct sigaction action {};
  action.sa_sigaction = step;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  return sigaction(SIGTRAP, &action, nullptr) == 0;
}

}  // namespace simt

extern "C" void __ubsan_handle_float_cast_overflow(void* data_, void* bits_) {
  using namespace simt;
  const CastData& data = *static_cast<CastData*>(data_);
  if (!scheduler().running || data.from->bits() > 64) return;  // the host's conversions are this computer's
  static const bool listening = listen();
  if (!listening) return;
  const bool is_float = data.from->bits() == 32;
  float single;
  double value;
  std::memcpy(&single, &bits_, 4);
  std::memcpy(&value, &bits_, 8);
  if (is_float) value = single;
  const bool is_narrow = data.to->bits() < 32, is_signed = data.to->is_signed();
  if (is_narrow && value > (is_signed ? -0x1p31 - 1 : -1) && value < 0x1p31) return;  // the lower bits are right
  cast = {true, value, as_a_gpu(value, *data.to), -1, 0};
  if (data.to->bits() == 64 && !is_signed && value >= 0x1p63) {  // g++ takes 2^63 off, and puts it back as a bit
    cast.operand = is_float ? double(single - 0x1p63f) : value - 0x1p63;
    cast.result ^= uint64_t{1} << 63;
  }
  go_on_casting();
}

#else

namespace simt {
bool casting = false;
void go_on_casting() {}
}  // namespace simt

#endif
