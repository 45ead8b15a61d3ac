// A few hundred elements in the first-level cache: bound by the number of calls and by conversions,
// so each is one pass over its operands.
#pragma once
#include "layers.h"
#include "simd.h"

namespace pyttc {
namespace {

// f(first element, load, store) for every vector of n elements, the last one perhaps short.
template <class F>
inline void for_vectors(int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W)
    f(i, [](const auto* p) { return load(p); }, [](auto* p, vf a) { store(p, a); });
  const int rest = static_cast<int>(n - i);
  if (rest)
    f(
        i, [=](const auto* p) { return load_n(p, rest); },
        [=](auto* p, vf a) { store_n(p, a, rest); });
}

// a as it is when it was stored as T.
template <class T>
inline vf rounded(vf a) {
  T memory[W];
  store(memory, a);
  return load(memory);
}
template <>
inline vf rounded<float>(vf a) {
  return a;
}
template <>
inline vf rounded<bf16>(vf a) {
  return nearest_bf16(a);
}

template <class T>
void rms_norm(void* x_, const void* added, const void* weight, float eps, int64_t h, void* out) {
  T* x = static_cast<T*>(x_);
  vf sum = zero();
  for_vectors(h, [&](int64_t i, auto get, auto put) {
    vf a = get(x + i);
    if (added) {
      a = rounded<T>(a + get(static_cast<const T*>(added) + i));
      put(x + i, a);
    }
    sum = fma(a, a, sum);
  });
  const vf scale = set1(1.f / __builtin_sqrtf(hsum(sum) / static_cast<float>(h) + eps));
  for_vectors(h, [&](int64_t i, auto get, auto put) {
    put(static_cast<T*>(out) + i,
        get(static_cast<const T*>(weight) + i) * rounded<T>(get(x + i) * scale));
  });
}

template <class T>
void rotary(void* x, const void* cos, const void* sin, int64_t d) {
  const int64_t half = d / 2;
  T *low = static_cast<T*>(x), *high = low + half;
  const T *c = static_cast<const T*>(cos), *s = static_cast<const T*>(sin);
  for_vectors(half, [&](int64_t i, auto get, auto put) {
    const vf a = get(low + i), b = get(high + i);
    put(low + i, rounded<T>(a * get(c + i)) - rounded<T>(b * get(s + i)));
    put(high + i, rounded<T>(b * get(c + half + i)) + rounded<T>(a * get(s + half + i)));
  });
}

template <class T>
void silu_mul(const void* gate, const void* up, int64_t n, void* out) {
  for_vectors(n, [&](int64_t i, auto get, auto put) {
    const vf a = get(static_cast<const T*>(gate) + i);
    const vf silu = a / (set1(1.f) + exp(zero() - a));
    put(static_cast<T*>(out) + i, rounded<T>(silu) * get(static_cast<const T*>(up) + i));
  });
}

template <class T>
constexpr LayerKernels layer_kernels() {
  return {rms_norm<T>, rotary<T>, silu_mul<T>};
}

}  // namespace

extern const Layers PYTTC_ISA(layers) = {layer_kernels<float>(), layer_kernels<bf16>(),
                                         layer_kernels<f16>()};

}  // namespace pyttc
