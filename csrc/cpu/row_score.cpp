#include "row_score.h"

#include <algorithm>
#include <cmath>

#include "isa.h"

namespace pyttc {

const RowScanKernels& row_scan_kernels(DType dtype) {
  const RowScanTable& table = pick(row_scan_generic, row_scan_avx2, row_scan_avx512);
  return dtype == DType::f32 ? table.f32 : dtype == DType::bf16 ? table.bf16 : table.f16;
}

float Row::at(int64_t column) const {
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
  parallel_for(parts, static_cast<int>(parts), [&](int64_t part) {
    RowScan& s = scans[part];
    begin_scan(s, scale, k, keys.data() + part * room, blocks.data());
    row.kernels.scan(row.data, row.v, segments * part / parts * kSegmentBlocks,
                     std::min(n, segments * (part + 1) / parts * kSegmentBlocks), filter, s);
  });
  for (int64_t part = 1; part < parts; ++part) merge_best(scans[0], scans[part]);
  best = sort_best(scans[0]);
  invalid = scans[0].invalid;
  totals = total(blocks.data(), n);
  if (invalid || !(totals.sum > 0)) return;
  // Float rounds a block's sum by about 3e-8: that averages out over many blocks but not where a
  // few hold the mass, and shifts the cumulative distribution under every column between them.
  const double share =
      std::max(std::pow(8000. / static_cast<double>(row.v), 2), 2. / static_cast<double>(n));
  bool refined = false;
  for (int64_t b = 0; b < n; ++b) {
    BlockStat& stat = blocks[b];
    if (stat.wide || !(stat.sum > 0)) continue;
    if (stat.sum * power_of_two(stat.ref - totals.ref) < share * totals.sum) continue;
    row.kernels.refine(row.data, row.v, b, filter, scale, stat);
    refined = true;
  }
  if (refined) totals = total(blocks.data(), n);
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
