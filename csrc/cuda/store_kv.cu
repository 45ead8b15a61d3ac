// Bound by memory: one block a row, which moves its keys and values in 16-byte pieces where they
// are aligned. Of several rows for one slot the last is stored. While rows are few a block looks at
// the later slots first, which are few bytes beside the row. Many rows would be quadratic: for
// them two small kernels leave the last row for each slot in a table over the pool. Of that only
// what they wrote is read, so that nothing has to clear it.
#include "launch.cuh"
#include "ops.h"
#include "pieces.h"

namespace pyttc {
namespace {

constexpr int kThreads = 128, kTableThreads = 256;

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
  int32_t* last;           // of the rows for each slot; null while rows are few
  unsigned pieces, heads;  // pieces of a head
};

// A row's slot, -1 where it has none in the pool.
__device__ int64_t slot_of(const StoreKvParams& p, int64_t row) {
  const int64_t slot = p.wide ? static_cast<const int64_t*>(p.slots)[row * p.slot_stride]
                              : static_cast<const int32_t*>(p.slots)[row * p.slot_stride];
  return slot < p.pool_slots ? slot : -1;
}

// Into the table: of each slot some row.
__global__ void __launch_bounds__(kTableThreads) any_row_kernel(const StoreKvParams p) {
  const int64_t row = int64_t{blockIdx.x} * kTableThreads + threadIdx.x;
  if (row >= p.rows) return;
  const int64_t slot = slot_of(p, row);
  if (slot >= 0) store_relaxed(&p.last[slot], static_cast<int32_t>(row));
}

// Of each slot the last row. Most rows are alone there, and need no atomic.
__global__ void __launch_bounds__(kTableThreads) last_row_kernel(const StoreKvParams p) {
  const int64_t row = int64_t{blockIdx.x} * kTableThreads + threadIdx.x;
  if (row >= p.rows) return;
  const int64_t slot = slot_of(p, row);
  if (slot >= 0 && load_relaxed(&p.last[slot]) < row)
    atomicMax(&p.last[slot], static_cast<int32_t>(row));
}

template <class Piece>
__device__ void copy_row(const Row& r, const StoreKvParams& p, int64_t row, int64_t page,
                         int64_t offset) {
  const char* from = r.from + row * r.row;
  char* to = r.to + page * r.page + offset * r.slot;
  for (unsigned i = threadIdx.x; i < p.heads * p.pieces; i += kThreads) {
    const unsigned head = i / p.pieces, at = i % p.pieces * static_cast<unsigned>(sizeof(Piece));
    *reinterpret_cast<Piece*>(to + head * r.slot_head + at) =
        *reinterpret_cast<const Piece*>(from + head * r.row_head + at);
  }
}

template <class Piece>
__global__ void __launch_bounds__(kThreads) store_kv_kernel(const StoreKvParams p) {
  const int64_t row = blockIdx.x;
  const int64_t slot = slot_of(p, row);
  if (slot < 0) return;
  if (p.last) {
    if (p.last[slot] != row) return;
  } else {
    bool later = false;
    for (int64_t i = row + 1 + threadIdx.x; i < p.rows; i += kThreads)
      later |= slot_of(p, i) == slot;
    if (__syncthreads_or(later)) return;
  }
  const int64_t page = slot / p.page_size, offset = slot % p.page_size;
  copy_row<Piece>(p.k, p, row, page, offset);
  copy_row<Piece>(p.v, p, row, page, offset);
}

}  // namespace

// table: int32, one a slot of the pool, where rows are too many to look at each other's slots.
cudaError_t store_kv(cudaStream_t stream, const Tensor& k, const Tensor& v, const Tensor& k_pages,
                     const Tensor& v_pages, const Tensor& slots, const OptionalTensor& table) {
  if (k.numel() == 0) return cudaSuccess;
  const int64_t width = k.t.dtype.bits / 8;
  const auto row = [&](const Tensor& from, const Tensor& to) {
    return Row{from.data<char>(),      to.data<char>(),      from.stride(0) * width,
               from.stride(1) * width, to.stride(0) * width, to.stride(1) * width,
               to.stride(2) * width};
  };
  StoreKvParams p{row(k, k_pages), row(v, v_pages), slots.data<void>(),
                  slots.dtype() == DType::i64};
  p.slot_stride = slots.stride(0);
  p.rows = k.size(0);
  p.pool_slots = k_pages.size(0) * k_pages.size(1);
  p.page_size = k_pages.size(1);
  p.heads = static_cast<unsigned>(k.size(1));
  if (table) {
    p.last = table->data<int32_t>();
    const dim3 grid(static_cast<unsigned>((p.rows + kTableThreads - 1) / kTableThreads));
    PYTTC_LAUNCH(any_row_kernel, grid, dim3(kTableThreads), 0, stream, p);
    PYTTC_LAUNCH(last_row_kernel, grid, dim3(kTableThreads), 0, stream, p);
  }
  return with_pieces({k, v, k_pages, v_pages}, [&](auto piece) {
    using Piece = decltype(piece);
    p.pieces = static_cast<unsigned>(k.size(2) * width / static_cast<int64_t>(sizeof(Piece)));
    PYTTC_LAUNCH(store_kv_kernel<Piece>, dim3(static_cast<unsigned>(p.rows)), dim3(kThreads), 0,
                 stream, p);
    return cudaGetLastError();
  });
}

}  // namespace pyttc
