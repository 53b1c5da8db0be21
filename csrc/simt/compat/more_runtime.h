// The rest of the runtime's small calls: launches with attributes, questions about streams, functions and occupancy, older
// names, and copies between arrays. Wishes about caches and schedulers are accepted: nothing here has a cache.
#pragma once

#include "more_device.h"

// ---- launches with attributes

enum cudaClusterSchedulingPolicy { cudaClusterSchedulingPolicyDefault, cudaClusterSchedulingPolicySpread,
                                   cudaClusterSchedulingPolicyLoadBalancing };
enum cudaSynchronizationPolicy { cudaSyncPolicyAuto = 1, cudaSyncPolicySpin, cudaSyncPolicyYield, cudaSyncPolicyBlockingSync };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore, cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeSynchronizationPolicy,
  cudaLaunchAttributeClusterDimension, cudaLaunchAttributeClusterSchedulingPolicyPreference,
  cudaLaunchAttributeProgrammaticStreamSerialization, cudaLaunchAttributeProgrammaticEvent, cudaLaunchAttributePriority,
  cudaLaunchAttributePreferredSharedMemoryCarveout = 14
};
union cudaLaunchAttributeValue {
  char pad[64];
  cudaAccessPolicyWindow accessPolicyWindow;
  int cooperative, programmaticStreamSerializationAllowed, priority;
  cudaSynchronizationPolicy syncPolicy;
  struct { unsigned x, y, z; } clusterDim;
  cudaClusterSchedulingPolicy clusterSchedulingPolicyPreference;
  unsigned sharedMemCarveout;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
namespace simt::program {
// Whether the launch is a cooperative one; a cluster of more than one block is not supported.
inline bool is_cooperative(const cudaLaunchConfig_t& config, Where where) {
  bool together = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& one = config.attrs[i];
    if (one.id == cudaLaunchAttributeCooperative) together = one.val.cooperative;
    if (one.id == cudaLaunchAttributeClusterDimension &&
        one.val.clusterDim.x * one.val.clusterDim.y * one.val.clusterDim.z > 1)
      unsupported("clusters (cudaLaunchAttributeClusterDimension)", where);
  }
  return together;
}
}  // namespace simt::program
struct SimtLaunchPlace {  // made of a pointer where the launch is written, so it knows the line
  const cudaLaunchConfig_t* config;
  simt::Where where;
  SimtLaunchPlace(const cudaLaunchConfig_t* c, simt::Where w = simt::Where::here()) : config(c), where(w) {}
};
template <class... Wanted, class... Given>
cudaError_t cudaLaunchKernelEx(SimtLaunchPlace place, void (*kernel)(Wanted...), Given&&... given) {
  const cudaLaunchConfig_t* const config = place.config;
  const simt::Where where = place.where;
  const bool together = simt::program::is_cooperative(*config, where);
  if (together && !simt::program::fit_together(config->gridDim, config->blockDim, config->dynamicSmemBytes))
    return simt::program::fail_with(cudaErrorCooperativeLaunchTooLarge);
  auto launch = simt::launcher("cudaLaunchKernelEx", reinterpret_cast<const void*>(kernel), where, config->gridDim,
                               config->blockDim, config->dynamicSmemBytes,
                               simt::program::stream_known(config->stream), kernel);
  launch.config.together = together;
  launch(static_cast<Wanted>(std::forward<Given>(given))...);
  return simt::program::checked();
}
// A kernel that follows another on a stream begins when that one has ended: there is nothing to wait for.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

// ---- questions

SIMT_ANSWER(cudaInitDevice(int, unsigned, unsigned), )
SIMT_ANSWER(cudaSetValidDevices(int*, int), )
SIMT_ANSWER(cudaGetDeviceFlags(unsigned* flags), *flags = cudaDeviceScheduleAuto | cudaDeviceMapHost)
SIMT_ANSWER(cudaDeviceGetByPCIBusId(int* device, const char*), *device = 0)
SIMT_ANSWER(cudaDeviceGetCacheConfig(cudaFuncCache* config), *config = cudaFuncCachePreferNone)
SIMT_ANSWER(cudaDeviceGetSharedMemConfig(cudaSharedMemConfig* config), *config = cudaSharedMemBankSizeFourByte)
template <class Kernel>
SIMT_ANSWER(cudaFuncSetSharedMemConfig(Kernel*, cudaSharedMemConfig), )
SIMT_ANSWER(cudaDeviceSetMemPool(int, cudaMemPool_t), )
SIMT_ANSWER(cudaThreadSetCacheConfig(cudaFuncCache), )
SIMT_ANSWER(cudaThreadGetCacheConfig(cudaFuncCache* config), *config = cudaFuncCachePreferNone)
SIMT_ANSWER(cudaThreadSetLimit(cudaLimit, size_t), )
SIMT_ANSWER(cudaThreadGetLimit(size_t* value, cudaLimit limit), cudaDeviceGetLimit(value, limit))
constexpr unsigned cudaEventRecordDefault = 0, cudaEventRecordExternal = 1, cudaEventWaitDefault = 0;
inline cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream = nullptr, unsigned = 0) {
  return cudaEventRecord(event, stream);
}
SIMT_ANSWER(cudaStreamGetPriority(cudaStream_t, int* priority), *priority = 0)
SIMT_ANSWER(cudaStreamGetDevice(cudaStream_t, int* device), *device = 0)
SIMT_ANSWER(cudaStreamGetId(cudaStream_t stream, unsigned long long* id), *id = reinterpret_cast<uintptr_t>(stream))
SIMT_ANSWER(cudaStreamCopyAttributes(cudaStream_t, cudaStream_t), )
SIMT_ANSWER(cudaStreamGetAttribute(cudaStream_t, cudaStreamAttrID, cudaStreamAttrValue* value), *value = {})
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive,
                               cudaStreamCaptureStatusInvalidated };
SIMT_ANSWER(cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status), *status = cudaStreamCaptureStatusNone)

constexpr unsigned cudaOccupancyDefault = 0, cudaOccupancyDisableCachingOverride = 1;
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Kernel kernel, int threads, size_t shared,
                                                                   unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, Kernel kernel, size_t shared = 0,
                                                        int limit = 0, unsigned = 0) {
  return cudaOccupancyMaxPotentialBlockSize(grid, block, kernel, shared, limit);
}
// The largest block of which the shared memory, as the program says it for a number of threads, fits.
template <class Kernel, class Shared>
cudaError_t cudaOccupancyMaxPotentialBlockSizeVariableSMem(int* grid, int* block, Kernel, Shared shared, int limit = 0) {
  *block = limit > 0 && limit < 1024 ? limit : 1024;
  while (*block > 32 && !simt::program::blocks_that_fit(*block, shared(*block))) *block -= 32;
  *grid = 16 * simt::program::blocks_that_fit(*block, shared(*block));
  return simt::program::checked();
}
template <class Kernel, class Shared>
cudaError_t cudaOccupancyMaxPotentialBlockSizeVariableSMemWithFlags(int* grid, int* block, Kernel kernel, Shared shared,
                                                                    int limit = 0, unsigned = 0) {
  return cudaOccupancyMaxPotentialBlockSizeVariableSMem(grid, block, kernel, shared, limit);
}
template <class Kernel>
SIMT_ANSWER(cudaOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, Kernel, int blocks, int),
            *bytes = blocks > 0 ? simt::options().device.shared_opt_in_bytes / size_t(blocks) : 0)

// ---- sets and copies

inline cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                                     cudaStream_t = nullptr) {
  return cudaMemset2D(to, pitch, value, width, height);
}
inline cudaError_t cudaMemset3DAsync(cudaPitchedPtr p, int value, cudaExtent extent, cudaStream_t = nullptr) {
  return cudaMemset3D(p, value, extent);
}
inline cudaError_t cudaMemcpy2DFromArrayAsync(void* to, size_t pitch, cudaArray_const_t from, size_t x, size_t y,
                                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return cudaMemcpy2DFromArray(to, pitch, from, x, y, width, height, kind);
}
inline cudaError_t cudaMemcpyToArrayAsync(cudaArray_t to, size_t x, size_t y, const void* from, size_t bytes,
                                          cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return cudaMemcpyToArray(to, x, y, from, bytes, kind);
}
inline cudaError_t cudaMemcpyFromArrayAsync(void* to, cudaArray_const_t from, size_t x, size_t y, size_t bytes,
                                            cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return cudaMemcpyFromArray(to, from, x, y, bytes, kind);
}
