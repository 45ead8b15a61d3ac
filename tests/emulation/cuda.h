// Runs CUDA C++ kernels on the host: one block at a time, one fiber a thread, switched at every
// barrier and shuffle. It finds wrong indices, missing barriers that change a result, divergent
// barriers and, under AddressSanitizer, out-of-bounds accesses.
// Under ThreadSanitizer it finds races (fibers.h).
// PYTTC_EMULATE_REVERSE=1 in the environment runs blocks and threads in reverse order, so that a
// result depending on either shows. PYTTC_EMULATE_SHARED=<bytes> is the shared memory that a kernel
// may ask for, 99 KiB if it is not set: the least that devices have.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "fibers.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __shared__
#undef __grid_constant__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__

#define __shared__ EMULATION_LOCAL

#define threadIdx (emulation::me().id)
#define blockIdx (emulation::block()->id)
#define blockDim (emulation::block()->size)
#define gridDim (emulation::block()->grid)
#define PYTTC_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulation::shared_memory())
#define PYTTC_LAUNCH(kernel, grid, size, shared_bytes, stream, ...)                   \
  emulation::launch(reinterpret_cast<const void*>(&kernel), grid, size, shared_bytes, \
                    [&] { kernel(__VA_ARGS__); })

inline cudaError_t cudaGetLastError() {
  return std::exchange(emulation::last_error(), cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <class F>
cudaError_t cudaFuncSetAttribute(F kernel, cudaFuncAttribute, int bytes) {
  if (static_cast<size_t>(bytes) > emulation::most_shared())
    return emulation::last_error() = cudaErrorInvalidValue;
  emulation::allowed(reinterpret_cast<const void*>(kernel)) = static_cast<size_t>(bytes);
  return cudaSuccess;
}

inline void __syncthreads() { emulation::barrier(emulation::Waits::block); }
inline void __syncwarp(unsigned = ~0u) { emulation::barrier(emulation::Waits::warp); }

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return emulation::exchange(value, source);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, emulation::lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by) {
  const int source = emulation::lane() + by;
  return emulation::exchange(value, source > 31 ? emulation::lane() : source);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int by) {
  const int source = emulation::lane() - by;
  return emulation::exchange(value, source < 0 ? emulation::lane() : source);
}
// Which live lanes of this warp offer something for which `take` holds, given theirs and mine.
template <class T, class F>
EMULATION_UNWATCHED unsigned lanes_where(T mine, F take) {
  emulation::Block* b = emulation::block();
  emulation::Thread* me = b->running;
  me->slot = 0;
  std::memcpy(&me->slot, &mine, sizeof(T));
  emulation::wait(emulation::Waits::warp);
  unsigned lanes = 0;
  for (size_t i = 0; i < 32 && me->warp * 32 + i < b->threads.size(); ++i) {
    const emulation::Thread& t = *b->threads[me->warp * 32 + i];
    T theirs;
    std::memcpy(&theirs, &t.slot, sizeof(T));
    if (!t.done && take(theirs, mine)) lanes |= 1u << i;
  }
  emulation::wait(emulation::Waits::warp);
  return lanes;
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  return lanes_where(predicate, [](int theirs, int) { return theirs != 0; });
}
template <class T>
unsigned __match_any_sync(unsigned, T value) {
  return lanes_where(value, [](T theirs, T mine) { return theirs == mine; });
}
// Of the lanes in `mask`, which all give the same one.
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  unsigned sum = 0;
  for (int i = 0; i < 32; ++i) {
    const unsigned theirs = emulation::exchange(value, i);
    if (mask >> i & 1) sum += theirs;
  }
  return sum;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
EMULATION_UNWATCHED inline int __syncthreads_or(int predicate) {
  emulation::me().slot = predicate != 0;
  __syncthreads();
  uint64_t any = 0;
  for (const auto& thread : emulation::block()->threads) any |= !thread->done && thread->slot;
  __syncthreads();
  return static_cast<int>(any);
}

template <class T>
T atomicAdd(T* p, T v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T, class F>
T atomic_change(T* p, F change) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, change(old), true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomicMax(T* p, T v) {
  return atomic_change(p, [&](T old) { return std::max(old, v); });
}
template <class T>
T atomicMin(T* p, T v) {
  return atomic_change(p, [&](T old) { return std::min(old, v); });
}
inline int32_t load_relaxed(const int32_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline void store_relaxed(int32_t* p, int32_t x) { __atomic_store_n(p, x, __ATOMIC_RELAXED); }

inline float max_or_nan(float x, float y) { return x != x || y != y ? NAN : std::max(x, y); }
inline float exp2_or_zero(float y) { return y < -126 ? 0 : std::exp2(y); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __uint_as_float(unsigned u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
using std::max;
using std::min;
