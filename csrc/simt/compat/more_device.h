// What programs ask of several devices, of memory pools and of caches, answered for the one device there is.
#pragma once

#include "memory.h"

SIMT_ANSWER(cudaMemcpyPeer(void* to, int, const void* from, int, size_t bytes), simt::program::copy(to, from, bytes))
SIMT_ANSWER(cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t = nullptr),
            simt::program::copy(to, from, bytes))
inline cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return simt::program::fail_with(cudaErrorInvalidDevice); }
inline cudaError_t cudaDeviceDisablePeerAccess(int) { return simt::program::fail_with(cudaErrorPeerAccessNotEnabled); }
enum cudaDeviceP2PAttr { cudaDevP2PAttrPerformanceRank = 1, cudaDevP2PAttrAccessSupported,
                         cudaDevP2PAttrNativeAtomicSupported, cudaDevP2PAttrCudaArrayAccessSupported };
SIMT_ANSWER(cudaDeviceGetP2PAttribute(int* value, cudaDeviceP2PAttr, int, int), *value = 0)
inline cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int) {
  std::snprintf(text, size_t(bytes), "0000:00:00.0");
  return simt::program::checked();
}

// Memory pools: memory is the host's, so a pool is nothing.
using cudaMemPool_t = struct SimtPool*;
enum cudaMemPoolAttr { cudaMemPoolReuseFollowEventDependencies = 1, cudaMemPoolReuseAllowOpportunistic,
                       cudaMemPoolReuseAllowInternalDependencies, cudaMemPoolAttrReleaseThreshold,
                       cudaMemPoolAttrReservedMemCurrent, cudaMemPoolAttrReservedMemHigh, cudaMemPoolAttrUsedMemCurrent,
                       cudaMemPoolAttrUsedMemHigh };
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemAllocationHandleType { cudaMemHandleTypeNone, cudaMemHandleTypePosixFileDescriptor };
enum cudaMemLocationType { cudaMemLocationTypeInvalid, cudaMemLocationTypeDevice, cudaMemLocationTypeHost,
                           cudaMemLocationTypeHostNuma, cudaMemLocationTypeHostNumaCurrent };
enum cudaMemAccessFlags { cudaMemAccessFlagsProtNone, cudaMemAccessFlagsProtRead, cudaMemAccessFlagsProtReadWrite = 3 };
struct cudaMemLocation { cudaMemLocationType type; int id; };
struct cudaMemAccessDesc { cudaMemLocation location; cudaMemAccessFlags flags; };
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  cudaMemAllocationHandleType handleTypes;
  cudaMemLocation location;
  void* win32SecurityAttributes;
};
SIMT_ANSWER(cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int), *pool = nullptr)
SIMT_ANSWER(cudaDeviceGetMemPool(cudaMemPool_t* pool, int), *pool = nullptr)
SIMT_ANSWER(cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*), *pool = nullptr)
SIMT_ANSWER(cudaMemPoolDestroy(cudaMemPool_t), )
SIMT_ANSWER(cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*), )
SIMT_ANSWER(cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value), std::memset(value, 0, 8))
SIMT_ANSWER(cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t), )
SIMT_ANSWER(cudaMemPoolTrimTo(cudaMemPool_t, size_t), )
template <class T>
cudaError_t cudaMallocFromPoolAsync(T** pointer, size_t bytes, cudaMemPool_t, cudaStream_t) {
  return simt::program::allocate_as(pointer, bytes, 0xff, "memory of cudaMallocFromPoolAsync");
}

SIMT_ANSWER(cudaMemPrefetchAsync(const void*, size_t, cudaMemLocation, unsigned, cudaStream_t = nullptr), )
SIMT_ANSWER(cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, cudaMemLocation), )

// Wishes for the cache.
enum cudaAccessProperty { cudaAccessPropertyNormal, cudaAccessPropertyStreaming, cudaAccessPropertyPersisting };
struct cudaAccessPolicyWindow { void* base_ptr; size_t num_bytes; float hitRatio; cudaAccessProperty hitProp, missProp; };
enum cudaStreamAttrID { cudaStreamAttributeAccessPolicyWindow = 1, cudaStreamAttributeSynchronizationPolicy = 3 };
#define cudaLaunchAttributeAccessPolicyWindow cudaStreamAttributeAccessPolicyWindow
union cudaStreamAttrValue { cudaAccessPolicyWindow accessPolicyWindow; int syncPolicy; };
SIMT_ANSWER(cudaStreamSetAttribute(cudaStream_t, cudaStreamAttrID, const cudaStreamAttrValue*), )
SIMT_ANSWER(cudaCtxResetPersistingL2Cache(), )

enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes { cudaMemoryType type; int device; void *devicePointer, *hostPointer; };
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* all, const void* pointer);
cudaError_t cudaHostGetFlags(unsigned* flags, void* pointer);
