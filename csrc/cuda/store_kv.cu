// Bound by memory: one block a row, which moves its keys and values in 16-byte pieces where they
// are aligned. Of several rows for one slot the last is stored: a block looks at the later slots
// first, which are few bytes beside the row.
#include "launch.cuh"
#include "ops.h"
#include "pieces.h"

namespace pyttc {
namespace {

constexpr int kThreads = 128;

struct Row {
  const char* from;
  char* to;
  int64_t row, row_head, page, slot, slot_head;  // strides in bytes
};

struct StoreKvParams {
  Row k, v;
  const void* slots;
  bool wide;  // slots are int64
  int64_t slot_stride, rows, pool_slots, page_size;
  int64_t pieces;  // of a head
  int64_t heads;
};

template <class Piece>
__device__ void copy_row(const Row& r, const StoreKvParams& p, int64_t row, int64_t slot) {
  const char* from = r.from + row * r.row;
  char* to = r.to + slot / p.page_size * r.page + slot % p.page_size * r.slot;
  for (int64_t i = threadIdx.x; i < p.heads * p.pieces; i += kThreads) {
    const int64_t head = i / p.pieces, at = i % p.pieces * static_cast<int64_t>(sizeof(Piece));
    *reinterpret_cast<Piece*>(to + head * r.slot_head + at) =
        *reinterpret_cast<const Piece*>(from + head * r.row_head + at);
  }
}

template <class Piece>
__global__ void __launch_bounds__(kThreads) store_kv_kernel(const StoreKvParams p) {
  const int64_t row = blockIdx.x;
  const auto slot_of = [&](int64_t i) {
    return p.wide ? static_cast<const int64_t*>(p.slots)[i * p.slot_stride]
                  : static_cast<const int32_t*>(p.slots)[i * p.slot_stride];
  };
  const int64_t slot = slot_of(row);
  if (slot < 0 || slot >= p.pool_slots) return;
  int later = 0;
  for (int64_t i = row + 1 + threadIdx.x; i < p.rows; i += kThreads) later |= slot_of(i) == slot;
  if (__syncthreads_or(later)) return;
  copy_row<Piece>(p.k, p, row, slot);
  copy_row<Piece>(p.v, p, row, slot);
}

}  // namespace

cudaError_t store_kv(cudaStream_t stream, const Tensor& k, const Tensor& v, const Tensor& k_pages,
                     const Tensor& v_pages, const Tensor& slots) {
  if (k.numel() == 0) return cudaSuccess;
  const int64_t width = k.t.dtype.bits / 8;
  const auto row = [&](const Tensor& from, const Tensor& to) {
    return Row{from.data<char>(),         to.data<char>(),      from.stride(0) * width,
               from.stride(1) * width,    to.stride(0) * width, to.stride(1) * width,
               to.stride(2) * width};
  };
  StoreKvParams p{row(k, k_pages), row(v, v_pages), slots.data<void>(),
                  slots.dtype() == DType::i64};
  p.slot_stride = slots.stride(0);
  p.rows = k.size(0);
  p.pool_slots = k_pages.size(0) * k_pages.size(1);
  p.page_size = k_pages.size(1);
  p.heads = k.size(1);
  return with_pieces({k, v, k_pages, v_pages}, [&](auto piece) {
    using Piece = decltype(piece);
    p.pieces = k.size(2) * width / static_cast<int64_t>(sizeof(Piece));
    PYTTC_LAUNCH(store_kv_kernel<Piece>, dim3(static_cast<unsigned>(p.rows)), dim3(kThreads), 0,
                 stream, p);
    return cudaGetLastError();
  });
}

}  // namespace pyttc
