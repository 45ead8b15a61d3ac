// Bound by memory. A block owns one slice of every page: it gathers the slice of all pages that are
// copied into shared memory before it writes any, so that a page may be read by one pair and
// written by another, in one launch. Of very many pages the slices are single elements.
#include "launch.cuh"
#include "ops.h"
#include "pieces.h"

namespace pyttc {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSliceBytes = 32 << 10;  // gathered by a block, while the pairs are few

struct Pool {
  char* data;
  int64_t layer, page, token, head;  // strides in bytes
};

struct CopyPagesParams {
  Pool pools[2];
  const void *src, *dst;
  bool src_wide, dst_wide;
  int64_t src_stride, dst_stride, pages;
  unsigned pairs, pieces, heads, page_pieces;  // pieces of a head, heads of a token
  unsigned slice;                              // pieces of a page that a block moves
};

__device__ int64_t index_at(const void* data, bool wide, int64_t at) {
  return wide ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
}

template <class Piece>
__global__ void __launch_bounds__(kThreads) copy_pages_kernel(const CopyPagesParams p) {
  PYTTC_DYNAMIC_SHARED(Piece, saved);
  const Pool& pool = p.pools[blockIdx.z];
  char* layer = pool.data + blockIdx.y * pool.layer;
  const unsigned first = blockIdx.x * p.slice;
  const auto address = [&](int64_t page, unsigned piece) {
    const unsigned row = piece / p.pieces;
    return reinterpret_cast<Piece*>(layer + page * pool.page + row / p.heads * pool.token +
                                    row % p.heads * pool.head +
                                    piece % p.pieces * static_cast<unsigned>(sizeof(Piece)));
  };
  const auto each = [&](auto move) {
    for (unsigned i = threadIdx.x; i < p.pairs * p.slice; i += kThreads) {
      const unsigned pair = i / p.slice, piece = first + i % p.slice;
      const int64_t from = index_at(p.src, p.src_wide, pair * p.src_stride);
      const int64_t to = index_at(p.dst, p.dst_wide, pair * p.dst_stride);
      const bool named = from >= 0 && from < p.pages && to >= 0 && to < p.pages;
      if (named && piece < p.page_pieces) move(i, piece, from, to);
    }
  };
  each(
      [&](unsigned i, unsigned piece, int64_t from, int64_t) { saved[i] = *address(from, piece); });
  __syncthreads();
  each([&](unsigned i, unsigned piece, int64_t, int64_t to) { *address(to, piece) = saved[i]; });
}

}  // namespace

cudaError_t copy_pages(cudaStream_t stream, const Tensor& k_pages, const Tensor& v_pages,
                       const Tensor& src, const Tensor& dst) {
  const int first = k_pages.t.ndim - 4;
  const int64_t layers = first ? k_pages.size(0) : 1, width = k_pages.t.dtype.bits / 8;
  CopyPagesParams p{};
  const int64_t pairs = src.size(0);
  if (k_pages.numel() == 0 || pairs == 0) return cudaSuccess;
  const Tensor* tensors[2] = {&k_pages, &v_pages};
  for (int i = 0; i < 2; ++i) {
    const Tensor& t = *tensors[i];
    p.pools[i] = {t.data<char>(), first ? t.stride(0) * width : 0, t.stride(first) * width,
                  t.stride(first + 1) * width, t.stride(first + 2) * width};
  }
  p.src = src.data<void>(), p.src_wide = src.dtype() == DType::i64, p.src_stride = src.stride(0);
  p.dst = dst.data<void>(), p.dst_wide = dst.dtype() == DType::i64, p.dst_stride = dst.stride(0);
  p.pages = k_pages.size(first);
  p.heads = static_cast<unsigned>(k_pages.size(first + 2));
  const auto move = [&](auto piece) {
    using Piece = decltype(piece);
    constexpr int64_t kPiece = sizeof(Piece);
    const int64_t pieces = k_pages.size(first + 3) * width / kPiece;
    const int64_t of_page = k_pages.size(first + 1) * k_pages.size(first + 2) * pieces;
    const int64_t slice = min(of_page, max(int64_t{1}, kSliceBytes / kPiece / pairs));
    p.pairs = static_cast<unsigned>(pairs);
    p.pieces = static_cast<unsigned>(pieces);
    p.page_pieces = static_cast<unsigned>(of_page);
    p.slice = static_cast<unsigned>(slice);
    const int64_t bytes = pairs * slice * kPiece;
    const cudaError_t error = allow_shared(copy_pages_kernel<Piece>, 0, bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>((of_page + slice - 1) / slice),
                    static_cast<unsigned>(layers), 2);
    PYTTC_LAUNCH(copy_pages_kernel<Piece>, grid, dim3(kThreads), static_cast<size_t>(bytes), stream,
                 p);
    return cudaGetLastError();
  };
  if (pairs * width > kMostShared) return cudaErrorInvalidValue;
  return with_pieces({k_pages, v_pages}, move, pairs * int64_t{sizeof(uint4)} <= kMostShared);
}

}  // namespace pyttc
