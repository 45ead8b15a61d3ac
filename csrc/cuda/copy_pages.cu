// Bound by memory. A block owns one slice of every page: it gathers the slice of all pages that are
// copied into shared memory before it writes any, so that a page may be read by one pair and
// written by another, in one launch.
#include "launch.cuh"
#include "ops.h"
#include "pieces.h"

namespace pyttc {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSharedBytes = 96 << 10;
constexpr int64_t kSliceBytes = 32 << 10;  // gathered by a block, while the pairs are few

struct Pool {
  char* data;
  int64_t layer, page, token, head;  // strides in bytes
};

struct CopyPagesParams {
  Pool pools[2];
  const void *src, *dst;
  bool src_wide, dst_wide;
  int64_t src_stride, dst_stride, pairs, pages;
  int64_t pieces, heads, page_pieces;  // of a head; heads of a token; pieces of a page
  int64_t slice;                       // pieces of a page that a block moves
};

__device__ int64_t index_at(const void* data, bool wide, int64_t at) {
  return wide ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
}

template <class Piece>
__global__ void __launch_bounds__(kThreads) copy_pages_kernel(const CopyPagesParams p) {
  PYTTC_DYNAMIC_SHARED(Piece, saved);
  const Pool& pool = p.pools[blockIdx.z];
  char* layer = pool.data + blockIdx.y * pool.layer;
  const int64_t first = blockIdx.x * p.slice;
  const auto address = [&](int64_t page, int64_t piece) {
    const int64_t row = piece / p.pieces;
    return reinterpret_cast<Piece*>(layer + page * pool.page + row / p.heads * pool.token +
                                    row % p.heads * pool.head +
                                    piece % p.pieces * static_cast<int64_t>(sizeof(Piece)));
  };
  const auto each = [&](auto move) {
    for (int64_t i = threadIdx.x; i < p.pairs * p.slice; i += kThreads) {
      const int64_t pair = i / p.slice, piece = first + i % p.slice;
      const int64_t from = index_at(p.src, p.src_wide, pair * p.src_stride);
      const int64_t to = index_at(p.dst, p.dst_wide, pair * p.dst_stride);
      const bool named = from >= 0 && from < p.pages && to >= 0 && to < p.pages;
      if (named && piece < p.page_pieces) move(i, piece, from, to);
    }
  };
  each([&](int64_t i, int64_t piece, int64_t from, int64_t) { saved[i] = *address(from, piece); });
  __syncthreads();
  each([&](int64_t i, int64_t piece, int64_t, int64_t to) { *address(to, piece) = saved[i]; });
}

}  // namespace

cudaError_t copy_pages(cudaStream_t stream, const Tensor& k_pages, const Tensor& v_pages,
                       const Tensor& src, const Tensor& dst) {
  const int first = k_pages.t.ndim - 4;
  const int64_t layers = first ? k_pages.size(0) : 1, width = k_pages.t.dtype.bits / 8;
  CopyPagesParams p{};
  p.pairs = src.size(0);
  if (k_pages.numel() == 0 || p.pairs == 0) return cudaSuccess;
  const Tensor* tensors[2] = {&k_pages, &v_pages};
  for (int i = 0; i < 2; ++i) {
    const Tensor& t = *tensors[i];
    p.pools[i] = {t.data<char>(), first ? t.stride(0) * width : 0, t.stride(first) * width,
                  t.stride(first + 1) * width, t.stride(first + 2) * width};
  }
  p.src = src.data<void>(), p.src_wide = src.dtype() == DType::i64, p.src_stride = src.stride(0);
  p.dst = dst.data<void>(), p.dst_wide = dst.dtype() == DType::i64, p.dst_stride = dst.stride(0);
  p.pages = k_pages.size(first);
  p.heads = k_pages.size(first + 2);
  return with_pieces({k_pages, v_pages}, [&](auto piece) {
    using Piece = decltype(piece);
    constexpr int64_t kPiece = sizeof(Piece);
    if (p.pairs * kPiece > kSharedBytes) return cudaErrorInvalidValue;
    p.pieces = k_pages.size(first + 3) * width / kPiece;
    p.page_pieces = k_pages.size(first + 1) * p.heads * p.pieces;
    p.slice = min(p.page_pieces, max(int64_t{1}, kSliceBytes / kPiece / p.pairs));
    const size_t bytes = static_cast<size_t>(p.pairs * p.slice * kPiece);
    const cudaError_t error =
        cudaFuncSetAttribute(copy_pages_kernel<Piece>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kSharedBytes));
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>((p.page_pieces + p.slice - 1) / p.slice),
                    static_cast<unsigned>(layers), 2);
    PYTTC_LAUNCH(copy_pages_kernel<Piece>, grid, dim3(kThreads), bytes, stream, p);
    return cudaGetLastError();
  });
}

}  // namespace pyttc
