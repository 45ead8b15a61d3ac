// The algebra of partial attention: a state is (out, lse), out the softmax-weighted mean of the
// values seen so far and lse the natural log of the sum of exp(score). Nothing seen is (0, -inf).
#pragma once
#include <cmath>
#include <cstdint>

#include "philox.h"  // PYTTC_HOST_DEVICE

namespace pyttc {

struct MergeWeights {
  float a, b, lse;
};

// out = a * out_a + b * out_b. Two empty states merge to an empty one: no infinity is ever
// subtracted from another. A NaN or +inf in either makes all three NaN.
PYTTC_HOST_DEVICE inline MergeWeights merge_weights(float lse_a, float lse_b) {
  const float high = lse_a > lse_b || lse_a != lse_a ? lse_a : lse_b;
  if (high == -INFINITY) return {0.f, 0.f, -INFINITY};
  const float ea = expf(lse_a - high), eb = expf(lse_b - high);
#if defined(__CUDA_ARCH__)
  // On a GPU expf ends in a product; fused into the sum it would make the order of the states show.
  const float sum = __fadd_rn(ea, eb);
#else
  const float sum = ea + eb;
#endif
  return {ea / sum, eb / sum, high + logf(sum)};
}

}  // namespace pyttc
