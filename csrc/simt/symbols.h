// Functions and thread-local variables of the library or program that the emulator is part of, by its file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace simt {

enum class SymbolKind { function, variable, thread_local_variable };
struct Symbol {
  const char* name;
  uint64_t place, bytes;  // of a thread-local variable: the offset into the module's thread-local memory
  SymbolKind kind;
};
void each_symbol(const std::function<void(const Symbol&)>& call);

struct Variable {
  const void* address;
  size_t bytes;
  std::string name;  // as the source has it: of "k(float*)::table" it is "table"
};
const std::vector<Variable>& variables();  // of the module, but for the emulator's own; those of the device are among them
std::string last_part(const char* symbol);
bool is_emulators_own(const std::string& symbol);
std::string function_at(const void* pc);   // the symbol of the module's function that an instruction belongs to

// Bytes of the __shared__ variables that a kernel's own body declares; those of functions that it calls are not known.
size_t static_shared_of(const void* function);

}  // namespace simt
