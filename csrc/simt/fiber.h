// Fibers: stacks that take turns on one OS thread. One fiber is one CUDA thread that has stopped somewhere.
//
// A switch saves the registers that a function must preserve, exchanges stack pointers and returns on the other
// stack: ten instructions instead of swapcontext's two system calls. x86-64 and arm64 have it in assembly; elsewhere,
// or with -DSIMT_UCONTEXT, the C library's ucontext does the same more slowly. One file, scheduler.cpp, defines
// SIMT_FIBER_ASSEMBLY, since the assembly must be in one object file. Rounding mode and other control words are not saved: nobody changes them.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(SIMT_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_UCONTEXT
#endif

#ifdef SIMT_UCONTEXT

#include <ucontext.h>

namespace simt {

struct Fiber {
  ucontext_t context;
};

inline void fiber_prepare(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

inline void fiber_switch(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

}  // namespace simt

#else

#ifdef __APPLE__
#define SIMT_SYMBOL "_simt_fiber_switch"
#define SIMT_HIDE ".private_extern " SIMT_SYMBOL "\n"
#else
#define SIMT_SYMBOL "simt_fiber_switch"
#define SIMT_HIDE ".hidden " SIMT_SYMBOL "\n"
#endif

// void simt_fiber_switch(void** save_stack_pointer_here, void* stack_pointer_of_the_other)
#ifdef __x86_64__
constexpr int kSavedRegisters = 6;  // rbp rbx r12 r13 r14 r15 (System V ABI); the return address lies above them
#ifdef SIMT_FIBER_ASSEMBLY
__asm__(
    ".text\n.p2align 4\n.globl " SIMT_SYMBOL "\n" SIMT_HIDE SIMT_SYMBOL ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");
#endif
#else
constexpr int kSavedRegisters = 20;  // x19-x28, x29 (frame), x30 (return address), d8-d15 (AAPCS64)
#ifdef SIMT_FIBER_ASSEMBLY
__asm__(
    ".text\n.p2align 4\n.globl " SIMT_SYMBOL "\n" SIMT_HIDE SIMT_SYMBOL ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#endif
#endif

extern "C" void simt_fiber_switch(void** save, void* to) __asm__(SIMT_SYMBOL);

namespace simt {

struct Fiber {
  void* stack_pointer;
};

// Lay out a stack as if `entry` had been called and had at once switched away.
inline void fiber_prepare(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
#ifdef __x86_64__
  *--top = nullptr;  // the return address of `entry`, which never returns: the ABI wants 8 modulo 16 on entry
  *--top = reinterpret_cast<void*>(entry);
  top -= kSavedRegisters;
  for (int i = 0; i < kSavedRegisters; ++i) top[i] = nullptr;
#else
  top -= kSavedRegisters;
  for (int i = 0; i < kSavedRegisters; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  fiber.stack_pointer = top;
}

inline void fiber_switch(Fiber& from, Fiber& to) { simt_fiber_switch(&from.stack_pointer, to.stack_pointer); }

}  // namespace simt

#endif
