// Linked before the kernels and once more behind them: where an index lands that misses all of static shared memory.

namespace simt {
static thread_local __attribute__((used)) unsigned char guard[1 << 20];
}
