// Bound by memory: three rows of D values move for two multiplications an element. Rows move in
// pieces of 16 bytes where they are aligned, else of one element. A few threads serve a row, each
// with pieces of its own and weights of its own, so that nothing passes between them; a warp holds
// several short rows.
#include "launch.cuh"
#include "ops.h"
#include "pieces.h"
#include "softmax_state.h"

namespace pyttc {
namespace {

constexpr int kThreads = 128;
constexpr int kDims = 8;  // leading dimensions a row index unfolds into

struct Strides {
  int64_t out_a, out_b, lse_a, lse_b;
};

struct MergeStatesParams {
  const void *out_a, *out_b;   // [..., D]
  const float *lse_a, *lse_b;  // [...]
  void* out;                   // [rows, D]
  float* lse;                  // [rows]
  int64_t rows, pieces;
  int log_threads;  // of a row
  int dims;
  int64_t size[kDims];
  Strides stride[kDims];
};

// Adds a dimension outside those so far. Neighbours that are one run in every tensor are one: in
// most calls all are, and a row's offset is a multiplication.
bool add_dim(MergeStatesParams& p, int64_t size, const Strides& s) {
  if (size == 1) return true;
  if (p.dims) {
    const int64_t n = p.size[p.dims - 1];
    const Strides& last = p.stride[p.dims - 1];
    if (s.out_a == last.out_a * n && s.out_b == last.out_b * n && s.lse_a == last.lse_a * n &&
        s.lse_b == last.lse_b * n) {
      p.size[p.dims - 1] *= size;
      return true;
    }
  }
  if (p.dims == kDims) return false;
  p.size[p.dims] = size;
  p.stride[p.dims++] = s;
  return true;
}

__device__ Strides offsets_of(const MergeStatesParams& p, int64_t row) {
  Strides at{};
#pragma unroll 1
  for (int k = 0; k < p.dims; ++k) {
    const bool outermost = k == p.dims - 1;
    const int64_t i = outermost ? row : row % p.size[k];
    if (!outermost) row /= p.size[k];
    at.out_a += i * p.stride[k].out_a;
    at.out_b += i * p.stride[k].out_b;
    at.lse_a += i * p.stride[k].lse_a;
    at.lse_b += i * p.stride[k].lse_b;
  }
  return at;
}

template <int kValues>
constexpr int kPieces = kValues > 1 ? 2 : 8;  // of a thread

template <class T, int kValues>
struct alignas(kValues * sizeof(T)) Piece {
  T values[kValues];
};

template <class T, int kValues>
__global__ void __launch_bounds__(kThreads) merge_states_kernel(const MergeStatesParams p) {
  using Values = Piece<T, kValues>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = thread >> p.log_threads;
  if (row >= p.rows) return;
  const int64_t step = int64_t{1} << p.log_threads, first = thread & (step - 1);
  const Strides at = offsets_of(p, row);
  const auto* from_a = reinterpret_cast<const Values*>(static_cast<const T*>(p.out_a) + at.out_a);
  const auto* from_b = reinterpret_cast<const Values*>(static_cast<const T*>(p.out_b) + at.out_b);
  Values a[kPieces<kValues>], b[kPieces<kValues>];  // on their way before weights are computed
#pragma unroll
  for (int k = 0; k < kPieces<kValues>; ++k) {
    const int64_t piece = first + k * step;
    if (piece < p.pieces) a[k] = from_a[piece], b[k] = from_b[piece];
  }
  const MergeWeights w = merge_weights(p.lse_a[at.lse_a], p.lse_b[at.lse_b]);
  if (first == 0) p.lse[row] = w.lse;
#pragma unroll
  for (int k = 0; k < kPieces<kValues>; ++k) {
    const int64_t piece = first + k * step;
    if (piece >= p.pieces) return;
    Values out;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      // A weight of 0 belongs to a state that saw nothing: its values are not read into the result.
      // Fused into the sum, a product would make the order of the states show.
      const float x = w.a == 0.f ? 0.f : __fmul_rn(w.a, widen(a[k].values[i]));
      const float y = w.b == 0.f ? 0.f : __fmul_rn(w.b, widen(b[k].values[i]));
      narrow(__fadd_rn(x, y), out.values[i]);
    }
    static_cast<Values*>(p.out)[row * p.pieces + piece] = out;
  }
}

}  // namespace

cudaError_t merge_states(cudaStream_t stream, const Tensor& out_a, const Tensor& lse_a,
                         const Tensor& out_b, const Tensor& lse_b, const Tensor& out,
                         const Tensor& lse) {
  MergeStatesParams p{out_a.data<void>(),  out_b.data<void>(), lse_a.data<float>(),
                      lse_b.data<float>(), out.data<void>(),   lse.data<float>()};
  p.rows = lse.numel();
  if (p.rows == 0) return cudaSuccess;
  for (int k = lse.t.ndim - 1; k >= 0; --k) {
    const Strides stride{out_a.stride(k), out_b.stride(k), lse_a.stride(k), lse_b.stride(k)};
    if (!add_dim(p, lse.size(k), stride)) return cudaErrorInvalidValue;
  }
  const int64_t d = out.size(lse.t.ndim);
  const bool sixteens = in_sixteens(out_a) && in_sixteens(out_b) && in_sixteens(out);
  return dispatch_device_float(out.dtype(), [&](auto t) {
    using T = decltype(t);
    constexpr int kValues = 16 / sizeof(T);
    const auto launch = [&](auto kernel, int64_t pieces, int of_thread) {
      p.pieces = pieces;
      while (int64_t{of_thread} << p.log_threads < pieces) ++p.log_threads;
      const int64_t threads = p.rows << p.log_threads;
      const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
      PYTTC_LAUNCH(kernel, grid, dim3(kThreads), 0, stream, p);
      return cudaGetLastError();
    };
    return sixteens ? launch(merge_states_kernel<T, kValues>, d / kValues, kPieces<kValues>)
                    : launch(merge_states_kernel<T, 1>, d, kPieces<1>);
  });
}

}  // namespace pyttc
