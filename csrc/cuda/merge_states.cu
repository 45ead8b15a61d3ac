// Bound by memory: three rows of D values move for two multiplications an element. One warp a row,
// so that a row of 64 to 256 values is one to eight coalesced steps and needs no shared memory.
#include "launch.cuh"
#include "ops.h"
#include "softmax_state.h"

namespace pyttc {
namespace {

constexpr int kWarps = 8;
constexpr int kDims = 8;  // leading dimensions a row index unfolds into

struct MergeStatesParams {
  const void *out_a, *out_b;   // [..., D]
  const float *lse_a, *lse_b;  // [...]
  void* out;                   // [rows, D]
  float* lse;                  // [rows]
  int64_t rows, d;
  int dims;
  int64_t size[kDims], out_a_stride[kDims], out_b_stride[kDims];
  int64_t lse_a_stride[kDims], lse_b_stride[kDims];
};

__device__ int64_t row_offset(const MergeStatesParams& p, const int64_t* stride, int64_t row) {
  int64_t offset = 0;
  for (int k = p.dims - 1; k >= 0; --k) {
    offset += row % p.size[k] * stride[k];
    row /= p.size[k];
  }
  return offset;
}

template <class T>
__global__ void __launch_bounds__(kWarps * 32) merge_states_kernel(const MergeStatesParams p) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % 32;
  const MergeWeights w = merge_weights(p.lse_a[row_offset(p, p.lse_a_stride, row)],
                                       p.lse_b[row_offset(p, p.lse_b_stride, row)]);
  const T* a = static_cast<const T*>(p.out_a) + row_offset(p, p.out_a_stride, row);
  const T* b = static_cast<const T*>(p.out_b) + row_offset(p, p.out_b_stride, row);
  T* out = static_cast<T*>(p.out) + row * p.d;
  for (int64_t i = lane; i < p.d; i += 32) {
    // A weight of 0 belongs to a state that saw nothing: its values are not read into the result.
    const float x = w.a == 0.f ? 0.f : w.a * widen(a[i]);
    const float y = w.b == 0.f ? 0.f : w.b * widen(b[i]);
    narrow(x + y, out[i]);
  }
  if (lane == 0) p.lse[row] = w.lse;
}

}  // namespace

cudaError_t merge_states(cudaStream_t stream, const Tensor& out_a, const Tensor& lse_a,
                         const Tensor& out_b, const Tensor& lse_b, const Tensor& out,
                         const Tensor& lse) {
  MergeStatesParams p{out_a.data<void>(),  out_b.data<void>(), lse_a.data<float>(),
                      lse_b.data<float>(), out.data<void>(),   lse.data<float>()};
  p.dims = lse.t.ndim;
  p.rows = lse.numel();
  if (p.dims > kDims) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  p.d = out.size(p.dims);
  for (int k = 0; k < p.dims; ++k) {
    p.size[k] = lse.size(k);
    p.out_a_stride[k] = out_a.stride(k);
    p.out_b_stride[k] = out_b.stride(k);
    p.lse_a_stride[k] = lse_a.stride(k);
    p.lse_b_stride[k] = lse_b.stride(k);
  }
  const dim3 grid(static_cast<unsigned>((p.rows + kWarps - 1) / kWarps));
  return dispatch_device_float(out.dtype(), [&](auto t) {
    using T = decltype(t);
    PYTTC_LAUNCH(merge_states_kernel<T>, grid, dim3(kWarps * 32), 0, stream, p);
    return cudaGetLastError();
  });
}

}  // namespace pyttc
