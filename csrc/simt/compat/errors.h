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
enum cudaError { SIMT_CUDA_ERRORS(SIMT_NAME_IT) };
#undef SIMT_NAME_IT
using cudaError_t = cudaError;

namespace simt::program {

[[noreturn]] void unsupported(const char* what, Where where);  // ends the program with exit code 3
cudaError_t checked();                   // of any runtime call: takes in what a launch left; sticky after a failed kernel
cudaError_t last_error(bool forget);
cudaError_t fail_with(cudaError_t error);  // remembered for cudaGetLastError

}  // namespace simt::program

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
inline cudaError_t cudaGetLastError() { return simt::program::last_error(true); }
inline cudaError_t cudaPeekAtLastError() { return simt::program::last_error(false); }
