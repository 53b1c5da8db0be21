// Linked before the kernels and once more behind them: where an index lands that misses all of static shared memory, or the
// variables of the device, which lie among those with a first value or among those without.

namespace simt {
static thread_local __attribute__((used)) unsigned char guard[1 << 20];
static __attribute__((used)) unsigned char guard_of_set[1 << 16] = {1}, guard_of_unset[1 << 16];
}
