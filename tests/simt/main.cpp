#include <cstdio>

#include "cases.h"

int main(int count, char** words) {
  const auto found = cases().find(count > 1 ? words[1] : "");
  if (found == cases().end()) return std::puts("no such case"), 2;
  try {
    found->second();
  } catch (const Failed& failed) {
    return std::puts(failed.what.c_str()), 1;
  } catch (const simt::Error& error) {
    return std::puts(error.what()), 3;
  }
  return 0;
}
