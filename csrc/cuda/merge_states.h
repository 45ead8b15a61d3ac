#pragma once
#include "cuda_api.h"

namespace pyttc {

constexpr int kMergeDims = 4;  // leading dimensions a row index unfolds into

struct MergeStatesParams {
  const void *out_a, *out_b;    // [..., D]
  const float *lse_a, *lse_b;   // [...]
  void* out;                    // [rows, D]
  float* lse;                   // [rows]
  int64_t rows, d;
  int dims;
  int64_t size[kMergeDims];
  int64_t out_a_stride[kMergeDims], out_b_stride[kMergeDims];
  int64_t lse_a_stride[kMergeDims], lse_b_stride[kMergeDims];
};

cudaError_t merge_states_cuda(const MergeStatesParams& p, Float dtype, cudaStream_t stream);

}  // namespace pyttc
