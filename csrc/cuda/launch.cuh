// What every .cu file includes instead of the CUDA headers: with nvcc the real ones, and with g++
// and -DPYTTC_EMULATE the host emulation of tests/emulation/cuda.h, which runs the same source on
// the CPU. Hence the two macros: a launch without <<<>>>, and dynamic shared memory without extern.
#pragma once
#include "cuda_api.h"
#include "tensor.h"

#if !defined(PYTTC_EMULATE)
#define PYTTC_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define PYTTC_DYNAMIC_SHARED(T, name)                    \
  extern __shared__ __align__(1024) char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)

// One instruction each. The larger, NaN if either is one; 2^y, 0 below 2^-126.
__device__ __forceinline__ float max_or_nan(float x, float y) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(x), "f"(y));
  return most;
}
__device__ __forceinline__ float exp2_or_zero(float y) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(y));
  return power;
}
// Of a word that several threads write at once, where any of them may win.
__device__ __forceinline__ int32_t load_relaxed(const int32_t* from) {
  int32_t x;
  asm volatile("ld.relaxed.gpu.s32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}
__device__ __forceinline__ void store_relaxed(int32_t* to, int32_t x) {
  asm volatile("st.relaxed.gpu.s32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}
#endif

namespace pyttc {

// The most shared memory a block may have on every device from compute capability 8.0 on; 8.6, 8.9
// and 12.0 have no more.
constexpr int64_t kMostShared = 99 << 10;

// Has to come before a launch with `bytes` of dynamic shared memory: beyond 48 KiB, with the static
// kind, a kernel must ask. It asks for all there is, since another thread may be launching it too.
template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), int64_t static_bytes, int64_t bytes) {
  if (static_bytes + bytes <= 48 << 10) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(kMostShared - static_bytes));
}

// Calls f(T{}) with the device type behind a dtype.
template <class F>
cudaError_t dispatch_device_float(DType dtype, F f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(__nv_bfloat16{});
    case DType::f16:
      return f(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16(x); }
__device__ __forceinline__ void narrow(float x, __half& out) { out = __float2half(x); }

}  // namespace pyttc
