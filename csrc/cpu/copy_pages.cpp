// Bound by memory: each page is read once and written once. Copies larger than the caches are
// streamed past them, since an ordinary store reads what it overwrites first. Only a page that is
// read by one pair and written by another passes through a buffer.
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "fits.h"
#include "ops.h"
#include "overlap.h"
#include "parallel.h"

namespace pyttc {
namespace {

constexpr int64_t kBytesAnItem = 1 << 15, kBytesAThread = 1 << 17, kBytesToStream = 1 << 22;

void stream(char* to, const char* from, int64_t n) {
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0)
    for (; n >= 64; n -= 64, to += 64, from += 64)
      for (int i = 0; i < 64; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
  std::memcpy(to, from, n);
}

struct Steps {
  int64_t outer, inner;  // in bytes
};

// The pages of one of k_pages and v_pages, [layers, pages, page_size, Hkv, D] or without layers. A
// page is outer x inner runs of `bytes`; what follows each other in memory is one run.
struct Pool {
  char* data;
  int64_t layers, layer, page;  // the last two are strides in bytes
  int64_t outer, inner, bytes;
  Steps steps;
  bool streamed;

  Pool(const Tensor& t, int64_t width, int64_t copies) : data(t.data<char>()) {
    const int first = t.t.ndim - 4;
    layers = first ? t.size(0) : 1;
    layer = first ? t.stride(0) * width : 0;
    page = t.stride(first) * width;
    int wide = first + 1, narrow = first + 2;
    if (t.stride(wide) < t.stride(narrow)) std::swap(wide, narrow);
    outer = t.size(wide), inner = t.size(narrow), bytes = t.size(first + 3) * width;
    steps = {t.stride(wide) * width, t.stride(narrow) * width};
    if (inner == 1 || steps.inner == bytes) bytes *= inner, inner = 1;
    if (inner == 1 && (outer == 1 || steps.outer == bytes)) bytes *= outer, outer = 1;
    streamed = bytes >= 64 && layers * copies * page_bytes() >= kBytesToStream;
  }
  int64_t page_bytes() const { return outer * inner * bytes; }
  Steps packed() const { return {inner * bytes, bytes}; }
  char* at(int64_t l, int64_t p) const { return data + l * layer + p * page; }
  void move(char* to, Steps to_steps, const char* from, Steps from_steps) const {
    for (int64_t i = 0; i < outer; ++i)
      for (int64_t j = 0; j < inner; ++j) {
        char* run = to + i * to_steps.outer + j * to_steps.inner;
        const char* source = from + i * from_steps.outer + j * from_steps.inner;
        if (streamed)
          stream(run, source, bytes);
        else
          std::memcpy(run, source, bytes);
      }
#if defined(__SSE2__)
    if (streamed) _mm_sfence();
#endif
  }
};

struct Pair {
  int64_t from, to;
};

// Calls body(pool, layer, index, pool-and-layer number) for all of `count` pages of each pool and
// layer.
template <class F>
void for_pages(const Pool (&pools)[2], int64_t count, int threads, F body) {
  const int64_t planes = 2 * pools[0].layers, bytes = pools[0].page_bytes();
  const int64_t block = std::max<int64_t>(1, kBytesAnItem / bytes);
  const int64_t blocks = (count + block - 1) / block;
  if (planes * count * bytes < 2 * kBytesAThread) threads = 1;
  parallel_for(planes * blocks, threads, [&](int64_t item) {
    const int64_t plane = item / blocks, first = item % blocks * block;
    for (int64_t i = first; i < std::min(count, first + block); ++i)
      body(pools[plane % 2], plane / 2, i, plane);
  });
}

}  // namespace

void copy_pages(const Tensor& k_pages, const Tensor& v_pages, const Tensor& src_tensor,
                const Tensor& dst_tensor, int threads) {
  const int dims = k_pages.t.ndim;
  require((dims == 4 || dims == 5) && v_pages.t.ndim == dims && on_cpu(k_pages) &&
          on_cpu(v_pages) && same_shape(v_pages, k_pages, dims) && is_float(k_pages) &&
          v_pages.dtype() == k_pages.dtype() && dense_last(k_pages) && dense_last(v_pages));
  require(fits_index(src_tensor, {kAny}) && fits_index(dst_tensor, {src_tensor.size(0)}));
  const Extent k_pool(k_pages), v_pool(v_pages);
  require_single("k_pages", k_pool);
  require_single("v_pages", v_pool);
  require_apart("v_pages", v_pool, "k_pages", k_pool);
  const Indices src(src_tensor), dst(dst_tensor);
  const int64_t n = src_tensor.size(0), pages = k_pages.size(dims - 4);
  const std::string below = " a page below " + std::to_string(pages);
  std::vector<bool> written(pages);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t from = src.at(i), to = dst.at(i);
    if (to < -1 || to >= pages) fail("dst", i, to, "-1 or" + below);
    if (to == -1) continue;
    if (from < 0 || from >= pages) fail("src", i, from, below.substr(1));
    if (written[to]) fail("dst", i, to, "each page once");
    written[to] = true;
  }
  std::vector<Pair> direct, staged;
  for (int64_t i = 0; i < n; ++i) {
    const Pair pair{src.at(i), dst.at(i)};
    if (pair.to != -1 && pair.from != pair.to)
      (written[pair.from] ? staged : direct).push_back(pair);
  }
  if (k_pages.numel() == 0) return;

  const Pool pools[2] = {{k_pages, k_pool.width, n}, {v_pages, v_pool.width, n}};
  const int64_t bytes = pools[0].page_bytes(), count = staged.size();
  const std::unique_ptr<char[]> buffer(
      count ? new char[elements({2, pools[0].layers, count, bytes})] : nullptr);
  const auto saved = [&](int64_t plane, int64_t i) {
    return buffer.get() + (plane * count + i) * bytes;
  };
  for_pages(pools, count, threads, [&](const Pool& pool, int64_t l, int64_t i, int64_t plane) {
    pool.move(saved(plane, i), pool.packed(), pool.at(l, staged[i].from), pool.steps);
  });
  for_pages(pools, direct.size(), threads, [&](const Pool& pool, int64_t l, int64_t i, int64_t) {
    pool.move(pool.at(l, direct[i].to), pool.steps, pool.at(l, direct[i].from), pool.steps);
  });
  for_pages(pools, count, threads, [&](const Pool& pool, int64_t l, int64_t i, int64_t plane) {
    pool.move(pool.at(l, staged[i].to), pool.steps, saved(plane, i), pool.packed());
  });
}

}  // namespace pyttc
