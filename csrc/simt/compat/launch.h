// kernel<<<grid, block, shared, stream>>>(arguments), as SIMT_KERNEL(kernel)(grid, block, shared, stream)(arguments).
#pragma once

#include "../runtime.h"
#include "errors.h"

struct SimtStream;
struct SimtEvent;
using cudaStream_t = SimtStream*;
using cudaEvent_t = SimtEvent*;

namespace simt::program {

const void* stream_known(cudaStream_t stream);  // null: the default stream

// A kernel as a pointer, or null where only the arguments decide which of several it is.
template <class Result, class... Arguments>
auto pointer(Result (*kernel)(Arguments...), int) {
  return kernel;
}
template <class Ask>
auto address(Ask ask, int) -> decltype(ask(0)) {
  return ask(0);
}
inline std::nullptr_t address(...) { return nullptr; }

template <class Launch, class... Arguments>
struct Typed {  // arguments are converted as those of a function are: 0 is a null pointer where a pointer is wanted
  Launch launch;
  void operator()(Arguments... arguments) {
    launch(arguments...);
    launched();
  }
  template <class... Fewer>  // where the kernel has default arguments
  auto operator()(Fewer... arguments) -> std::enable_if_t<(sizeof...(Fewer) < sizeof...(Arguments))> {
    launch(arguments...);
    launched();
  }
};
template <class Launch, class Result, class... Arguments>
Typed<Launch, Arguments...> typed(Launch launch, Result (*)(Arguments...)) {
  return {launch};
}
template <class Launch>
auto typed(Launch launch, std::nullptr_t) {
  return [launch](auto... arguments) mutable {
    launch(arguments...);
    launched();
  };
}

template <class Body, class Pointer>
struct Kernel {
  const char* name;
  Pointer kernel;
  Where where;
  Body body;
  auto operator()(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t stream = nullptr) const {
    return typed(launcher(name, (const void*)kernel, where, grid, block, shared, stream_known(stream), body), kernel);
  }
};
template <class Body, class Pointer>
Kernel<Body, Pointer> kernel(const char* name, Pointer kernel, Where where, Body body) {
  return {name, kernel, where, body};
}

// extern __shared__ T name[]; outside of any function.
template <class T>
struct DynamicShared {
  operator T*() const { return static_cast<T*>(dynamic_shared()); }
  template <class U>
  explicit operator U*() const {
    return (U*)(dynamic_shared());
  }
};

}  // namespace simt::program

#define SIMT_KERNEL(...)                                                                                          \
  ::simt::program::kernel(                                                                                        \
      #__VA_ARGS__,                                                                                               \
      ::simt::program::address([=](auto zero) -> decltype(::simt::program::pointer(__VA_ARGS__, zero)) {          \
        return ::simt::program::pointer(__VA_ARGS__, zero);                                                       \
      }, 0),                                                                                                      \
      ::simt::Where::here(), [=](auto... arguments) { __VA_ARGS__(arguments...); })

namespace simt::program {
bool fit_together(dim3 grid, dim3 block, size_t shared);
}
template <class... Arguments, size_t... I>
cudaError_t simt_launch(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** arguments, size_t shared,
                        cudaStream_t stream, simt::Where where, bool together, std::index_sequence<I...>) {
  auto launch = simt::launcher(together ? "cudaLaunchCooperativeKernel" : "cudaLaunchKernel",
                               reinterpret_cast<const void*>(kernel), where, grid, block, shared,
                               simt::program::stream_known(stream), kernel);
  launch.config.together = together;
  launch(*static_cast<std::remove_reference_t<Arguments>*>(arguments[I])...);
  return simt::program::launched();
}
template <class... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** arguments, size_t shared = 0,
                             cudaStream_t stream = nullptr, simt::Where where = simt::Where::here()) {
  return simt_launch(kernel, grid, block, arguments, shared, stream, where, false, std::index_sequence_for<Arguments...>());
}
template <class... Arguments>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** arguments,
                                        size_t shared = 0, cudaStream_t stream = nullptr,
                                        simt::Where where = simt::Where::here()) {
  if (!simt::program::fit_together(grid, block, shared))
    return simt::program::fail_with(cudaErrorCooperativeLaunchTooLarge);
  return simt_launch(kernel, grid, block, arguments, shared, stream, where, true, std::index_sequence_for<Arguments...>());
}
inline cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t = 0, cudaStream_t = nullptr,
                                    simt::Where where = simt::Where::here()) {
  simt::program::unsupported("cudaLaunchKernel of a void pointer (give the kernel itself)", where);
}
inline cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t = 0, cudaStream_t = nullptr,
                                               simt::Where where = simt::Where::here()) {
  simt::program::unsupported("cudaLaunchCooperativeKernel of a void pointer (give the kernel itself)", where);
}
