// What topk_score and sample share around a scan: a whole row on any number of threads, and the
// top-k outputs.
#pragma once
#include <cmath>
#include <vector>

#include "fits.h"
#include "parallel.h"
#include "row_scan.h"

namespace pyttc {

constexpr double kLn2 = 0.69314718055994530942;

constexpr int64_t kMostBest = 1024;  // the largest k

inline void require_logits(const Tensor& logits) {
  require(has_shape(logits, {kAny, kAny}) && logits.size(1) >= 1);
  require(is_float(logits) && on_cpu(logits) && dense_last(logits));
}
inline void require_scoring(int64_t v, int64_t k, double temperature) {
  require(k >= 1 && k <= kMostBest && k <= v && temperature > 0 && temperature < INFINITY);
}

const RowScanKernels& row_scan_kernels(DType dtype);

// A row of v logits of any float type: in memory, unless a subclass computes what is asked for.
class Row {
 public:
  Row(DType dtype, const void* data, int64_t v)
      : kernels(row_scan_kernels(dtype)), dtype(dtype), v(v), data_(data) {}
  virtual ~Row() = default;

  // From where columns [begin, end) can be read as elements begin to end - 1, until the next call.
  virtual const void* columns(int64_t begin, int64_t end) const;
  float at(int64_t column) const;

  const RowScanKernels& kernels;
  const DType dtype;
  const int64_t v;

 private:
  const void* data_;
};

// What one scan found; its buffers are reused by the next.
struct ScannedRow {
  std::vector<uint64_t> keys;  // the first `best` are the best columns, best first
  std::vector<BlockStat> blocks;
  int64_t best;
  bool invalid;
  RowTotals totals;

  // -inf and 0 for an invalid row.
  float logsumexp() const {
    return invalid ? -__builtin_inff() : static_cast<float>(kLn2 * (totals.ref + totals.log2_sum));
  }
  float entropy() const { return invalid ? 0 : static_cast<float>(totals.entropy); }

  // Scans with up to `threads` threads, which never shows in the result.
  void scan(const Row& row, const Filter* filter, const Scale& scale, int64_t k, int threads);
  // The same without a filter, and `allowed` becomes the scan for the k_allowed best of what `mask`
  // allows, but for its entropy; false, and `allowed` unknown, where that is too little beside all.
  bool scan_both(const Row& row, const int32_t* mask, const Scale& scale, int64_t k,
                 ScannedRow& allowed, int64_t k_allowed, int threads);
  // Sums, without the best, the columns from `high` on that `mask`, if there is one, allows, in
  // units of 2^ref, in which none is wide; those of [low, high) are the first of `keys_between`,
  // order keys in order of column. Returns how many.
  int64_t scan_above(const Row& row, const int32_t* mask, float low, float high, const Scale& scale,
                     double ref, std::vector<uint64_t>& keys_between, int threads);
  // The last step of a scan of a row of v columns: what its parts found together.
  void merge(RowScan* scans, int64_t parts, int64_t v);

 private:
  std::vector<RowScan> begin(const Row& row, const Scale& scale, int64_t k, int64_t parts);
};

// The k best columns of a scanned row and their log-probabilities. Columns at -inf follow in index
// order; a row that is invalid or has nothing above -inf gives -1 and -inf.
void write_best(const Row& row, const ScannedRow& scanned, const Scale& scale, int64_t k,
                float* logprobs, int64_t* indices);

// Rows are independent items if there are enough to go round, else each row is shared out.
template <class F>
void parallel_rows(int64_t rows, int threads, F body) {
  if (rows >= threads)
    parallel_for(rows, threads, [&](int64_t i) { body(i, 1); });
  else
    for (int64_t i = 0; i < rows; ++i) body(i, threads);
}

}  // namespace pyttc
