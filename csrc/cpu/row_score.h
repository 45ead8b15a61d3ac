// What topk_score and sample share around a scan: a whole row on any number of threads, and the
// top-k outputs.
#pragma once
#include <vector>

#include "parallel.h"
#include "row_scan.h"
#include "tensor.h"

namespace pyttc {

constexpr double kLn2 = 0.69314718055994530942;

const RowScanKernels& row_scan_kernels(DType dtype);

// A row of logits of any float type.
struct Row {
  const RowScanKernels& kernels;
  DType dtype;
  const void* data;
  int64_t v;

  float at(int64_t column) const;
};

// What one scan found; its buffers are reused by the next.
struct ScannedRow {
  std::vector<uint64_t> keys;  // the first `best` are the best columns, best first
  std::vector<BlockStat> blocks;
  int64_t best;
  bool invalid;
  RowTotals totals;

  // Scans with up to `threads` threads, which never shows in the result.
  void scan(const Row& row, const Filter* filter, const Scale& scale, int64_t k, int threads);
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
