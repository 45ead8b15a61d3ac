// Logits exist only as blocks of 256 columns for at most 64 rows: computed, scanned as topk_score and
// sample scan them, and overwritten by the next. Work is cut by rows and by segments of the vocabulary,
// which never shows in a result: a logit and a block's sums depend on nothing outside.
#include "lm_head_topk.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "isa.h"
#include "module.h"
#include "parallel.h"
#include "row_scan.h"

namespace pyttc {
namespace {

static_assert(kHeadBlock == kBlock);

constexpr int64_t kRowsAtOnce = 64;  // whose logits of a block fit the second-level cache
constexpr int64_t kRowGranule = 16;  // rows are packed in groups of this many

struct alignas(64) CacheLine {
  char bytes[64];
};

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// hidden [B, H] and weight [V, H].
class Product {
 public:
  Product(const Tensor& hidden, const Tensor& weight)
      : hidden_(hidden), weight_(weight), kernel_(kernel(hidden.dtype())) {}

  int64_t rows() const { return hidden_.size(0); }
  int64_t columns() const { return weight_.size(0); }

  void pack() {
    packed_ = allocate(rows());
    kernel_.pack(hidden_.data<void>(), hidden_.stride(0), rows(), h(), packed_.get());
  }

  // Logits of a block of columns for n rows from `first`, a multiple of kRowGranule, on.
  void logits(int64_t block, int64_t first, int64_t n, float* out) const {
    const char* packed = reinterpret_cast<const char*>(packed_.get());
    logits_of(packed + kernel_.packed_bytes(first, h()), n, block, out);
  }

 private:
  static const LmHead& kernel(DType dtype) {
    if (dtype == DType::bf16 && isa() == Isa::amx) return lm_head_bf16_amx;
    const LmHeads& heads = pick(lm_heads_generic, lm_heads_avx2, lm_heads_avx512);
    return dtype == DType::f32 ? heads.f32 : dtype == DType::bf16 ? heads.bf16 : heads.f16;
  }
  int64_t h() const { return hidden_.size(1); }
  std::unique_ptr<CacheLine[]> allocate(int64_t rows) const {
    return std::unique_ptr<CacheLine[]>(new CacheLine[divide_up(kernel_.packed_bytes(rows, h()), 64)]);
  }
  void logits_of(const char* packed, int64_t rows, int64_t block, float* out) const {
    const int64_t width = weight_.dtype() == DType::f32 ? 4 : 2;
    const char* weight = weight_.data<char>() + block * kBlock * weight_.stride(0) * width;
    const int count = static_cast<int>(std::min<int64_t>(kBlock, columns() - block * kBlock));
    kernel_.logits(weight, weight_.stride(0), count, packed, rows, h(), out);
  }

  const Tensor &hidden_, &weight_;
  const LmHead& kernel_;
  std::unique_ptr<CacheLine[]> packed_;
};

// How a call falls into items of up to `rows` rows and 1 / `parts` of the vocabulary.
struct Cut {
  int64_t rows, parts;
};

Cut cut(int64_t rows, int64_t segments, int64_t k, int threads) {
  const auto granules = [](int64_t n) { return divide_up(n, kRowGranule) * kRowGranule; };
  // Candidates of an item's rows stay in a megabyte; 256 rows hide the reading of the weights.
  const int64_t most = (int64_t{1} << 17) / key_room(k) / kRowGranule * kRowGranule;
  const int64_t limit = std::min<int64_t>(256, std::max(kRowGranule, most));
  const int64_t row_items = divide_up(rows, limit);
  const int64_t parts = std::min(segments, divide_up(threads, row_items));
  const int64_t want = std::max(row_items, divide_up(threads, parts));
  return {granules(divide_up(rows, want)), parts};
}

// Scans all rows, the logits of a block of columns at a time. scale(i) and filter(i) are those of row i.
template <class S, class F>
std::vector<ScannedRow> scan_rows(const Product& product, S scale, F filter, int64_t k, int threads) {
  const int64_t v = product.columns(), blocks = blocks_of(v), room = key_room(k);
  const int64_t segments = divide_up(blocks, kSegmentBlocks);
  const Cut items = cut(product.rows(), segments, k, threads);
  std::vector<ScannedRow> rows(product.rows());
  std::vector<RowScan> scans(product.rows() * items.parts);  // [row][part]
  for (int64_t i = 0; i < product.rows(); ++i) {
    rows[i].keys.resize(room * items.parts);
    rows[i].blocks.resize(blocks);
    for (int64_t part = 0; part < items.parts; ++part)
      begin_scan(scans[i * items.parts + part], scale(i), k, rows[i].keys.data() + part * room,
                 rows[i].blocks.data());
  }
  const RowScanKernels& kernels = row_scan_kernels(DType::f32);
  parallel_for(divide_up(product.rows(), items.rows) * items.parts, threads, [&](int64_t item) {
    alignas(64) float logits[kRowsAtOnce * kBlock];
    const int64_t part = item % items.parts, begin = item / items.parts * items.rows;
    const int64_t end = std::min(product.rows(), begin + items.rows);
    const int64_t last = std::min(blocks, segments * (part + 1) / items.parts * kSegmentBlocks);
    for (int64_t b = segments * part / items.parts * kSegmentBlocks; b < last; ++b)
      for (int64_t first = begin; first < end; first += kRowsAtOnce) {
        const int64_t n = std::min(end - first, kRowsAtOnce);
        product.logits(b, first, n, logits);
        for (int64_t r = 0; r < n; ++r)
          kernels.scan(row_at(logits + r * kBlock, b), v, b, b + 1, filter(first + r),
                       scans[(first + r) * items.parts + part]);
      }
  });
  parallel_for(product.rows(), threads,
               [&](int64_t i) { rows[i].finish(&scans[i * items.parts], items.parts); });
  return rows;
}
