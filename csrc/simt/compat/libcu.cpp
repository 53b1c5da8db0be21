// Barriers that lie in memory: counters that threads look at again and again, giving way in between.

#include "libcu.h"

namespace simt::program {

void begin_phases(Phases& at, int expected) { at = {expected, expected, 0}; }

unsigned arrive(Phases& at, int count, bool drop, Where where) {
  commit_copies();
  finish_copies(0);
  if (count <= 0 || count > at.pending)
    fail("more threads arrive at a barrier in memory than it expects (or init() was forgotten)", where);
  const unsigned phase = at.phase;
  if (drop) at.expected -= count;
  if ((at.pending -= count) == 0) {
    at.pending = at.expected;
    ++at.phase;
    phase_ends(where);
  }
  return phase;
}

void wait_beyond(const Phases& at, unsigned phase, Where where) {
  while (int(at.phase - phase) <= 0) yield(where);
}

}  // namespace simt::program
