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

namespace {

int64_t segments_of(const Row& row) {
  return (blocks_of(row.v) + kSegmentBlocks - 1) / kSegmentBlocks;
}
// A part of fewer than four segments (4 us) is not worth a thread.
int64_t parts_of(const Row& row, int threads) {
  return std::max<int64_t>(1, std::min<int64_t>(threads, segments_of(row) / 4));
}

template <class F>
void for_parts(const Row& row, int64_t parts, F scan) {
  const int64_t segments = segments_of(row);
  parallel_for(parts, static_cast<int>(parts), [&](int64_t part) {
    scan(part, segments * part / parts * kSegmentBlocks,
         std::min(blocks_of(row.v), segments * (part + 1) / parts * kSegmentBlocks));
  });
}

}  // namespace

std::vector<RowScan> ScannedRow::begin(const Row& row, const Scale& scale, int64_t k,
                                       int64_t parts) {
  const int64_t n = blocks_of(row.v), room = key_room(k);
  if (static_cast<int64_t>(blocks.size()) < n) blocks.resize(n);
  if (static_cast<int64_t>(keys.size()) < room * parts) keys.resize(room * parts);
  std::vector<RowScan> scans(parts);
  for (int64_t part = 0; part < parts; ++part)
    begin_scan(scans[part], scale, k, keys.data() + part * room, blocks.data());
  return scans;
}

void ScannedRow::scan(const Row& row, const Filter* filter, const Scale& scale, int64_t k,
                      int threads) {
  std::vector<RowScan> scans = begin(row, scale, k, parts_of(row, threads));
  const void* data = row.columns(0, row.v);
  for_parts(row, scans.size(), [&](int64_t part, int64_t from, int64_t to) {
    row.kernels.scan(data, row.v, from, to, filter, scans[part]);
  });
  merge(scans.data(), scans.size(), row.v);
}

bool ScannedRow::scan_both(const Row& row, const int32_t* mask, const Scale& scale, int64_t k,
                           ScannedRow& allowed, int64_t k_allowed, int threads) {
  // Weights are 0 or exact down to 2^-120 of the row's largest: enough of them are left above.
  constexpr double kLeast = 0x1p-60;
  const int64_t parts = parts_of(row, threads);
  std::vector<RowScan> all = begin(row, scale, k, parts);
  std::vector<RowScan> in_mask = allowed.begin(row, scale, k_allowed, parts);
  std::vector<char> known(parts);
  const void* data = row.columns(0, row.v);
  for_parts(row, parts, [&](int64_t part, int64_t from, int64_t to) {
    known[part] = row.kernels.scan_both(data, row.v, from, to, mask, all[part], in_mask[part]);
  });
  merge(all.data(), parts, row.v);
  if (invalid || std::count(known.begin(), known.end(), 0)) return false;
  allowed.merge(in_mask.data(), parts, row.v);
  return allowed.totals.sum * power_of_two(allowed.totals.ref - totals.ref) > kLeast * totals.sum;
}

int64_t ScannedRow::scan_above(const Row& row, const int32_t* mask, float low, float high,
                               const Scale& scale, double ref, std::vector<uint64_t>& keys_between,
                               int threads) {
  const int64_t n = blocks_of(row.v), parts = parts_of(row, threads);
  if (static_cast<int64_t>(blocks.size()) < n) blocks.resize(n);
  if (static_cast<int64_t>(keys_between.size()) < row.v) keys_between.resize(row.v);
  struct Found {
    const uint64_t* keys;
    int64_t count;
  };
  std::vector<Found> found(parts);
  const void* data = row.columns(0, row.v);
  for_parts(row, parts, [&](int64_t part, int64_t from, int64_t to) {
    uint64_t* to_keys = keys_between.data() + from * kBlock;
    found[part] = {to_keys, row.kernels.scan_above(data, row.v, from, to, mask, low, high, scale,
                                                   ref, blocks.data(), to_keys)};
  });
  uint64_t* end = keys_between.data();
  for (const Found& part : found) end = std::copy_n(part.keys, part.count, end);
  invalid = false;
  best = 0;
  totals = total(blocks.data(), n);
  return end - keys_between.data();
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
