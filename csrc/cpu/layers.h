// What stands between the products of a transformer layer, compiled once per instruction set. Every
// step rounds to the dtype where a chain of torch operators would.
#pragma once
#include <cstdint>

namespace pyttc {

struct LayerKernels {
  // x[h] += added[h], unless that is null; out[h] = weight[h] * (x[h] / sqrt(mean(x^2) + eps))
  void (*rms_norm)(void* x, const void* added, const void* weight, float eps, int64_t h, void* out);
  // One head of d elements, in place: x * cos + (-second half of x, first half) * sin
  void (*rotary)(void* x, const void* cos, const void* sin, int64_t d);
  // out[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const void* gate, const void* up, int64_t n, void* out);
};

struct Layers {
  LayerKernels f32, bf16, f16;
};

extern const Layers layers_generic, layers_avx2, layers_avx512;

}  // namespace pyttc
