// A test program is a list of named cases: `program NAME` runs one. It prints what a case prints, and leaves with 1
// where a REQUIRE does not hold, with 3 where the emulator refuses.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "simt/simt.h"

inline std::map<std::string, std::function<void()>>& cases() {
  static std::map<std::string, std::function<void()>> all;
  return all;
}

struct Case {
  Case(const char* name, std::function<void()> body) { cases()[name] = std::move(body); }
};
#define CASE(name) \
  static void name(); \
  static const Case case_##name(#name, name); \
  static void name()

struct Failed {
  std::string what;
};
#define REQUIRE(condition) \
  if (!(condition)) throw Failed{std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition}
#define REQUIRE_EQUAL(value, wanted)                                                                          \
  if (const double value_ = double(value), wanted_ = double(wanted); !(value_ == wanted_))                      \
  throw Failed{std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #value " is " + std::to_string(value_) + \
               ", wanted " + std::to_string(wanted_)}
