// cudaError_t, and what becomes of a kernel that the emulator stopped: an error code for the program, a sentence for us.
#pragma once

#include "../runtime.h"

#define SIMT_CUDA_ERRORS(X)                                                                            \
  X(cudaSuccess, 0, "no error")                                                                        \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                                      \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                                     \
  X(cudaErrorInitializationError, 3, "initialization error")                                           \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                \
  X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                                          \
  X(cudaErrorInvalidSymbol, 13, "invalid device symbol")                                               \
  X(cudaErrorInvalidDevicePointer, 17, "invalid device pointer")                                       \
  X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                          \
  X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")   \
  X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                     \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                      \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                             \
  X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                    \
  X(cudaErrorNotReady, 600, "device not ready")                                                        \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                          \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                     \
  X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                            \
  X(cudaErrorPeerAccessAlreadyEnabled, 704, "peer access is already enabled")                          \
  X(cudaErrorPeerAccessNotEnabled, 705, "peer access has not been enabled")                            \
  X(cudaErrorAssert, 710, "device-side assert triggered")                                              \
  X(cudaErrorMisalignedAddress, 716, "misaligned address")                                             \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                         \
  X(cudaErrorCooperativeLaunchTooLarge, 720, "too many blocks in cooperative launch")                   \
  X(cudaErrorNotSupported, 801, "operation not supported")                                             \
  X(cudaErrorUnknown, 999, "unknown error")

#define SIMT_NAME_IT(name, number, text) name = number,
enum cudaError {
  SIMT_CUDA_ERRORS(SIMT_NAME_IT)
  // Errors that never happen here, for programs that list them all:
  cudaErrorCudartUnloading = 4, cudaErrorProfilerDisabled = 5, cudaErrorProfilerNotInitialized = 6,
  cudaErrorProfilerAlreadyStarted = 7, cudaErrorProfilerAlreadyStopped = 8, cudaErrorInvalidHostPointer = 16,
  cudaErrorInvalidTexture = 18, cudaErrorInvalidTextureBinding = 19, cudaErrorInvalidChannelDescriptor = 20,
  cudaErrorAddressOfConstant = 22, cudaErrorTextureFetchFailed = 23, cudaErrorTextureNotBound = 24,
  cudaErrorSynchronizationError = 25, cudaErrorInvalidFilterSetting = 26, cudaErrorInvalidNormSetting = 27,
  cudaErrorMixedDeviceExecution = 28, cudaErrorNotYetImplemented = 31, cudaErrorMemoryValueTooLarge = 32,
  cudaErrorInvalidSurface = 37, cudaErrorDuplicateVariableName = 43, cudaErrorDuplicateTextureName = 44,
  cudaErrorDuplicateSurfaceName = 45, cudaErrorDevicesUnavailable = 46, cudaErrorIncompatibleDriverContext = 49,
  cudaErrorMissingConfiguration = 52, cudaErrorPriorLaunchFailure = 53, cudaErrorLaunchMaxDepthExceeded = 65,
  cudaErrorLaunchFileScopedTex = 66, cudaErrorLaunchFileScopedSurf = 67, cudaErrorSyncDepthExceeded = 68,
  cudaErrorLaunchPendingCountExceeded = 69, cudaErrorStartupFailure = 127, cudaErrorInvalidKernelImage = 200,
  cudaErrorDeviceUninitialized = 201, cudaErrorMapBufferObjectFailed = 205, cudaErrorUnmapBufferObjectFailed = 206,
  cudaErrorNoKernelImageForDevice = 209, cudaErrorECCUncorrectable = 214, cudaErrorUnsupportedLimit = 215,
  cudaErrorDeviceAlreadyInUse = 216, cudaErrorPeerAccessUnsupported = 217, cudaErrorInvalidPtx = 218,
  cudaErrorInvalidGraphicsContext = 219, cudaErrorNvlinkUncorrectable = 220, cudaErrorInvalidSource = 300,
  cudaErrorFileNotFound = 301, cudaErrorSharedObjectSymbolNotFound = 302, cudaErrorSharedObjectInitFailed = 303,
  cudaErrorOperatingSystem = 304, cudaErrorIllegalState = 401, cudaErrorSymbolNotFound = 500,
  cudaErrorSetOnActiveProcess = 708, cudaErrorContextIsDestroyed = 709, cudaErrorTooManyPeers = 711,
  cudaErrorHostMemoryAlreadyRegistered = 712, cudaErrorHostMemoryNotRegistered = 713,
  cudaErrorHardwareStackError = 714, cudaErrorIllegalInstruction = 715, cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718, cudaErrorNotPermitted = 800, cudaErrorApiFailureBase = 10000,
};
#undef SIMT_NAME_IT
using cudaError_t = cudaError;
struct SimtEvent;

namespace simt::program {

[[noreturn]] void unsupported(const char* what, Where where);  // ends the program with exit code 3
cudaError_t checked();                   // of any runtime call: takes in what a launch left; sticky after a failed kernel
cudaError_t launched();                  // the same for a launch, which does not show what kernels printed
cudaError_t last_error(bool forget);
cudaError_t fail_with(cudaError_t error);  // remembered for cudaGetLastError

void wait_for_all();                     // the host waits for all streams
cudaError_t event_known(SimtEvent* event);
void show_printed();                     // by kernels, see printf.cpp
void show_printed_at_the_end();
void printed_at_most(size_t bytes);

}  // namespace simt::program

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
inline cudaError_t cudaGetLastError() { return simt::program::last_error(true); }
inline cudaError_t cudaPeekAtLastError() { return simt::program::last_error(false); }
