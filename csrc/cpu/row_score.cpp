#include "row_score.h"

#include <algorithm>
#include <cmath>

#include "isa.h"

namespace pyttc {

const RowScanKernels& row_scan_kernels(DType dtype) {
  const RowScanTable& table = pick(row_scan_generic, row_scan_avx2, row_scan_avx512);
  return dtype == DType::f32 ? table.f32 : dtype == DType::bf16 ? table.bf16 : table.f16;
}

const void* Row::columns(int64_t, int64_t) const { return data_; }

float Row::at(int64_t column) const {
  const void* data = columns(column, column + 1);
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(data)[column];
    case DType::bf16:
      return to_float(static_cast<const bf16*>(data)[column]);
    default:
      return to_float(static_cast<const f16*>(data)[column]);
  }
}

void ScannedRow::scan(const Row& row, const Filter* filter, const Scale& scale, int64_t k,
                      int threads) {
  const int64_t n = blocks_of(row.v), segments = (n + kSegmentBlocks - 1) / kSegmentBlocks;
  // A part of fewer than four segments (5 us) is not worth a thread.
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, segments / 4));
  const int64_t room = key_room(k);
  if (static_cast<int64_t>(blocks.size()) < n) blocks.resize(n);
  if (static_cast<int64_t>(keys.size()) < room * parts) keys.resize(room * parts);
  std::vector<RowScan> scans(parts);
  const void* data = row.columns(0, row.v);
  parallel_for(parts, static_cast<int>(parts), [&](int64_t part) {
    RowScan& s = scans[part];
    begin_scan(s, scale, k, keys.data() + part * room, blocks.data());
    row.kernels.scan(data, row.v, segments * part / parts * kSegmentBlocks,
                     std::min(n, segments * (part + 1) / parts * kSegmentBlocks), filter, s);
  });
  merge(scans.data(), parts, row.v);
}

void ScannedRow::merge(RowScan* scans, int64_t parts, int64_t v) {
  for (int64_t part = 1; part < parts; ++part) merge_best(scans[0], scans[part]);
  best = sort_best(scans[0]);
  invalid = scans[0].invalid;
  totals = total(blocks.data(), blocks_of(v));
}

void write_best(const Row& row, const ScannedRow& scanned, const Scale& scale, int64_t k,
                float* logprobs, int64_t* indices) {
  const bool bad = scanned.invalid || !(scanned.totals.sum > 0);
  const int64_t n = bad ? 0 : std::min(k, scanned.best);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t key = scanned.keys[i];
    logprobs[i] = static_cast<float>(kLn2 * scanned.totals.log2_probability(key_value(key), scale));
    indices[i] = key_column(key);
  }
  int64_t column = 0;
  for (int64_t i = n; i < k; ++i) {
    logprobs[i] = -INFINITY;
    while (!bad && row.at(column) != -INFINITY) ++column;
    indices[i] = bad ? -1 : column++;
  }
}

}  // namespace pyttc
