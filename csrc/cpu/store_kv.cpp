// Bound by memory: each row of k and v is read once and written once. Rows are dealt to threads by
// a hash of their slot, so that rows for the same slot meet in one thread, in order, and the last
// wins.
#include <cstring>

#include "fits.h"
#include "ops.h"
#include "overlap.h"
#include "parallel.h"

namespace pyttc {
namespace {

constexpr int64_t kBytesAThread = 1 << 17;  // less is copied before a thread has woken up

// One of k and v: row n of `rows` [N, Hkv, D] goes to slot s of `pages` [pages, page_size, Hkv, D].
struct RowCopy {
  const char* rows;
  char* pages;
  int64_t row, row_head, page, slot, slot_head;  // strides in bytes
  int64_t heads, bytes;                          // what one memcpy moves, and how many a row takes

  RowCopy(const Tensor& from, const Tensor& to, int64_t width)
      : rows(from.data<char>()),
        pages(to.data<char>()),
        row(from.stride(0) * width),
        row_head(from.stride(1) * width),
        page(to.stride(0) * width),
        slot(to.stride(1) * width),
        slot_head(to.stride(2) * width),
        heads(from.size(1)),
        bytes(from.size(2) * width) {
    if (row_head == bytes && slot_head == bytes) {
      bytes *= heads;
      heads = 1;
    }
  }
  void copy(int64_t n, int64_t page_index, int64_t offset) const {
    const char* from = rows + n * row;
    char* to = pages + page_index * page + offset * slot;
    for (int64_t h = 0; h < heads; ++h) std::memcpy(to + h * slot_head, from + h * row_head, bytes);
  }
};

}  // namespace

void store_kv(const Tensor& k, const Tensor& v, const Tensor& k_pages, const Tensor& v_pages,
              const Tensor& slots, int threads) {
  require(has_shape(k, {kAny, kAny, kAny}) && has_shape(k_pages, {kAny, kAny, kAny, kAny}));
  const DType dtype = k.dtype();
  const int64_t n = k.size(0), heads = k.size(1), d = k.size(2);
  const int64_t pages = k_pages.size(0), page_size = k_pages.size(1);
  require(is_float(k) && fits(k, dtype, {n, heads, d}) && fits(v, dtype, {n, heads, d}) &&
          fits(k_pages, dtype, {pages, page_size, heads, d}) &&
          fits(v_pages, dtype, {pages, page_size, heads, d}) && fits_index(slots, {n}));
  const Extent k_extent(k), v_extent(v), k_pool(k_pages), v_pool(v_pages);
  require_single("k_pages", k_pool);
  require_single("v_pages", v_pool);
  require_apart("v_pages", v_pool, "k_pages", k_pool);
  for (const auto& [name, pool] : {std::pair("k_pages", &k_pool), std::pair("v_pages", &v_pool)}) {
    require_apart("k", k_extent, name, *pool);
    require_apart("v", v_extent, name, *pool);
  }
  const Indices slot(slots);
  const int64_t end = pages * page_size;
  for (int64_t i = 0; i < n; ++i)
    if (slot.at(i) < -1 || slot.at(i) >= end)
      fail("slots", i, slot.at(i), "-1 or a slot below pages * page_size = " + std::to_string(end));
  if (k.numel() == 0) return;

  const int64_t width = k_extent.width;
  const RowCopy copies[2] = {{k, k_pages, width}, {v, v_pages, width}};
  const int64_t shards = std::clamp<int64_t>(k.numel() * width * 2 / kBytesAThread, 1, threads);
  parallel_for(2 * shards, shards > 1 ? threads : 1, [&](int64_t item) {
    const RowCopy& rows = copies[item % 2];
    const uint64_t shard = item / 2;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t s = slot.at(i);
      const uint64_t hash = (static_cast<uint64_t>(s) * 0x9E3779B97F4A7C15u) >> 32;
      if (s >= 0 && (shards == 1 || hash % shards == shard))
        rows.copy(i, s / page_size, s % page_size);
    }
  });
}

}  // namespace pyttc
