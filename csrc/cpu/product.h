// Rows times the transpose of a weight matrix, a block of its rows at a time, weights read where
// they lie: compiled once per instruction set. Every element is summed over h in an order that
// depends on h alone.
#pragma once
#include <cstdint>

namespace pyttc {

constexpr int kProductBlock =
    256;  // weight rows a call takes at most, and the stride of its output

struct ProductKernel {
  int64_t (*packed_bytes)(int64_t rows, int64_t h);
  // Rows, `stride` elements apart, in the layout that `block` reads; `packed` is aligned to 64.
  void (*pack)(const void* rows, int64_t stride, int64_t n, int64_t h, void* packed);
  // out[row * kProductBlock + v] for the `count` weight rows at `weight`. What lies past count is
  // undefined.
  void (*block)(const void* weight, int64_t stride, int count, const void* packed, int64_t rows,
                int64_t h, float* out);
  // out[row * stride + v] = sums[row * kProductBlock + v] + bias[v], or without a bias where it is
  // null, in the dtype of the weights.
  void (*finish)(const float* sums, int64_t rows, int count, const void* bias, void* out,
                 int64_t stride);
};

struct ProductKernels {
  ProductKernel f32, bf16, f16;
};

extern const ProductKernels product_generic, product_avx2, product_avx512;
extern const ProductKernel product_bf16_avx512bf16, product_bf16_amx;

}  // namespace pyttc
