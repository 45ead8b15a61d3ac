// From the float32 sums of a product to its result: a bias is added, and the sum rounded once.
#pragma once
#include "product.h"
#include "simd.h"

namespace pyttc {
namespace {

template <class T>
void finish(const float* sums, int64_t rows, int count, const void* bias, void* out,
            int64_t stride) {
  const T* b = static_cast<const T*>(bias);
  for (int64_t r = 0; r < rows; ++r) {
    const float* sum = sums + r * kProductBlock;
    T* to = static_cast<T*>(out) + r * stride;
    int c = 0;
    for (; c + W <= count; c += W) store(to + c, b ? load(sum + c) + load(b + c) : load(sum + c));
    const int rest = count - c;
    if (rest)
      store_n(to + c, b ? load_n(sum + c, rest) + load_n(b + c, rest) : load_n(sum + c, rest),
              rest);
  }
}

}  // namespace
}  // namespace pyttc
