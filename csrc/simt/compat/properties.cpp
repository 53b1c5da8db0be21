// What the made-up device answers about itself.

#include "cuda_runtime.h"

#include <sys/resource.h>

#include <map>

namespace simt::program {

size_t device_memory() {  // half of what the process may have; the other half is the host's
  rlimit limit;
  return getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY ? size_t{4} << 30 : size_t(limit.rlim_cur) / 2;
}

}  // namespace simt::program

using namespace simt::program;

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return fail_with(cudaErrorInvalidDevice);
  const simt::Device& limits = simt::options().device;
  *p = {};
  std::snprintf(p->name, sizeof p->name, "SIMT emulator (%s)", limits.name);
  const int version = std::atoi(limits.name + 3);
  p->major = version / 10, p->minor = version % 10;
  p->totalGlobalMem = device_memory(), p->totalConstMem = 64 * 1024, p->memPitch = INT_MAX;
  p->sharedMemPerBlock = limits.shared_bytes, p->sharedMemPerBlockOptin = limits.shared_opt_in_bytes;
  p->sharedMemPerMultiprocessor = limits.shared_opt_in_bytes + 1024, p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->warpSize = 32, p->maxThreadsPerBlock = 1024;
  const int block[3] = {1024, 1024, 64}, grid[3] = {INT_MAX, 65535, 65535};
  std::copy(block, block + 3, p->maxThreadsDim);
  std::copy(grid, grid + 3, p->maxGridSize);
  p->multiProcessorCount = 16, p->maxThreadsPerMultiProcessor = 1536, p->maxBlocksPerMultiProcessor = 24;
  p->maxTexture1D = p->maxTexture2D[0] = p->maxTexture1DLayered[0] = p->maxTexture2DLayered[0] = 32768;
  p->maxTexture2D[1] = p->maxTexture2DLayered[1] = 32768, p->maxTexture1DLayered[1] = p->maxTexture2DLayered[2] = 2048;
  for (int& size : p->maxTexture3D) size = 16384;
  p->memoryPoolsSupported = 1, p->persistingL2CacheMaxSize = p->accessPolicyMaxWindowSize = 1 << 20;
  p->clockRate = p->memoryClockRate = 1000000, p->memoryBusWidth = 128, p->l2CacheSize = 4 << 20;
  p->textureAlignment = 512, p->canMapHostMemory = p->unifiedAddressing = p->managedMemory = 1;
  p->cooperativeLaunch = p->concurrentKernels = p->asyncEngineCount = p->deviceOverlap = p->concurrentManagedAccess = 1;
  return checked();
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
  const std::map<int, int> known = {
      {cudaDevAttrMaxThreadsPerBlock, 1024}, {cudaDevAttrMaxBlockDimX, 1024}, {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64}, {cudaDevAttrMaxGridDimX, INT_MAX}, {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535}, {cudaDevAttrMaxSharedMemoryPerBlock, int(p.sharedMemPerBlock)},
      {cudaDevAttrTotalConstantMemory, 65536}, {cudaDevAttrWarpSize, 32}, {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrClockRate, p.clockRate}, {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
      {cudaDevAttrConcurrentKernels, 1}, {cudaDevAttrGpuOverlap, 1}, {cudaDevAttrAsyncEngineCount, 1},
      {cudaDevAttrCanMapHostMemory, 1}, {cudaDevAttrMaxBlocksPerMultiprocessor, 24}, {cudaDevAttrMaxPitch, INT_MAX},
      {cudaDevAttrMemoryClockRate, p.memoryClockRate},
      {cudaDevAttrGlobalMemoryBusWidth, p.memoryBusWidth}, {cudaDevAttrL2CacheSize, p.l2CacheSize},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 1536}, {cudaDevAttrUnifiedAddressing, 1},
      {cudaDevAttrComputeCapabilityMajor, p.major}, {cudaDevAttrComputeCapabilityMinor, p.minor},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, int(p.sharedMemPerMultiprocessor)},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536}, {cudaDevAttrManagedMemory, 1},
      {cudaDevAttrConcurrentManagedAccess, 1}, {cudaDevAttrCooperativeLaunch, 1}, {cudaDevAttrMemoryPoolsSupported, 1},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, int(p.sharedMemPerBlockOptin)},
      {cudaDevAttrReservedSharedMemoryPerBlock, int(p.reservedSharedMemPerBlock)},
      {cudaDevAttrMaxTexture1DWidth, p.maxTexture1D}, {cudaDevAttrMaxTexture2DWidth, p.maxTexture2D[0]},
      {cudaDevAttrMaxTexture2DHeight, p.maxTexture2D[1]}, {cudaDevAttrMaxTexture3DWidth, p.maxTexture3D[0]},
      {cudaDevAttrMaxTexture3DHeight, p.maxTexture3D[1]}, {cudaDevAttrMaxTexture3DDepth, p.maxTexture3D[2]},
      {cudaDevAttrTextureAlignment, int(p.textureAlignment)}};
  const auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;  // what is not known is not there
  return checked();
}
