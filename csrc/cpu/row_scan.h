// One pass over a row of logits that keeps everything scoring and sampling need: the sum of
// exponentials and its entropy moment per block of columns, the k best columns, and whether the row
// holds NaN or +inf.
//
// Columns are cut into blocks of 256 and segments of 16 blocks, fixed by column. A block's numbers
// depend on nothing outside its segment, so bits depend on neither batch, strides nor threads, and
// segments may be scanned in any order, by any thread, each thread with its own RowScan over one
// shared array of BlockStat.
//
// Weights are powers of two relative to an integer reference: e(x) = 2^(x * scale - ref), with
// scale = log2(e) / temperature in two floats. Changing a reference is exact, and offsets of 1e4
// cost nothing.
//
//   RowScan s; begin_scan(s, make_scale(temperature), k, keys, blocks);
//   kernels.scan(row, v, begin, end, nullptr, s);
//   RowTotals t = total(blocks, n);  sort_best(s);  // s.invalid: the row holds NaN or +inf
#pragma once
#include <cstdint>

#include "float16.h"

namespace pyttc {

constexpr int kBlock = 256;         // columns whose sum is kept
constexpr int kSegmentBlocks = 16;  // blocks that share a reference
constexpr int kGroup = 16;          // columns an inverse-CDF search ends in
constexpr int kGroups = kBlock / kGroup;

namespace {  // internal linkage, as in float16.h
inline int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

}  // namespace

struct BlockStat {
  double sum = 0;     // of e
  double moment = 0;  // of e * (x * scale - ref)
  double ref = 0;
  bool wide = false;                  // held in double: x * scale is beyond what two floats resolve
  float largest = -__builtin_inff();  // a column's value, unless the row is invalid
};

// x * scale = log2 of the weight, for a temperature > 0.
struct Scale {
  double c, inverse;
  float high, low;
};
Scale make_scale(double temperature);
// Whether values whose x * scale is about z need doubles.
bool is_wide(const Scale& scale, double z);

struct RowScan {
  Scale scale;
  // The segment's reference, the value it was set by, and the values at 2^-120 and 2^4 of it:
  // below, weights are 0; above, it moves.
  double ref, above;  // above: origin * scale - ref
  float origin, floor, ceiling;
  bool wide, invalid;
  // The best columns so far as order_key, in any order. Only values above `threshold` can still
  // enter.
  float threshold;
  int64_t k, count, full;
  uint64_t* keys;
  BlockStat* blocks;
};

namespace {
// Larger for a larger value, and among equals (-0 = +0) for a lower column.
inline uint64_t order_key(float value, int64_t column) {
  const uint32_t u = float_bits(value + 0.f), ordered = u >> 31 ? ~u : u | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xffffffffu - static_cast<uint32_t>(column));
}
inline float key_value(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return bits_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
inline int64_t key_column(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// Room a scan for the k best needs in `keys`.
inline int64_t full_at(int64_t k) { return k == 0 ? 0 : k + (k > 64 ? k : 64); }
inline int64_t key_room(int64_t k) { return full_at(k) + kBlock; }

}  // namespace

// Starts a scan (k = 0: no top-k). `blocks` has one entry a block of the whole row, `keys`
// key_room(k).
void begin_scan(RowScan& s, const Scale& scale, int64_t k, uint64_t* keys, BlockStat* blocks);
// Moves the segment's reference to a new largest value, or gives the segment over to doubles.
void set_reference(RowScan& s, float largest);
// A block in double precision, whatever the size of its logits.
void wide_block(const float* x, int64_t block, RowScan& s);
// The lowest value that has a weight; the weights of one group of a wide block.
float reference_floor(const Scale& scale, double ref);
void wide_weights(const float* x, const Scale& scale, double ref, float* e);
// Raises the threshold by the values of k columns or more: the largest of the blocks [begin, end).
void raise_threshold(RowScan& s, int64_t begin, int64_t end);
// Keeps the k best of the candidates and raises the threshold.
void compact(RowScan& s);
// Adds another scan's candidates to s: of other columns of the same row.
void merge_best(RowScan& s, const RowScan& other);
// Keeps the k best and sorts them, best first; returns how many there are (fewer than k when fewer
// than k values are above -inf).
int64_t sort_best(RowScan& s);

// 2^n, fast where n is a whole number, as it is unless blocks are wide.
double power_of_two(double n);

// A row's sum of 2^(x * scale - ref); 0 where nothing is above -inf.
struct RowTotals {
  double sum, log2_sum, ref;
  double entropy;  // nats

  // log2 of the probability of a value. The reference goes first: beside it a huge logit leaves
  // nothing. The sum is rounded, a probability is at most 1.
  double log2_probability(double value, const Scale& scale) const {
    const double log2 = value * scale.c - ref - log2_sum;
    return log2 < 0 ? log2 : 0;
  }
};
RowTotals total(const BlockStat* blocks, int64_t n);

// Columns to leave out of a scan: those cleared in `mask` (bit c % 32 of word c / 32; may be null)
// and those after (floor, last) in the order value descending, column ascending.
struct Filter {
  const int32_t* mask = nullptr;
  float floor = -__builtin_inff();
  int64_t last = INT64_MAX - 1;
};

// Per instruction set and dtype; rows have v columns.
struct RowScanKernels {
  // Blocks [begin, end), begin at the start of a segment; `filter` may be null.
  void (*scan)(const void* row, int64_t v, int64_t begin, int64_t end, const Filter* filter,
               RowScan& s);
  // The same without a filter, and beside it the sums and the best of the columns `mask` allows, in
  // the units of s and without moments; false if some block is wide, and `allowed` unknown.
  bool (*scan_both)(const void* row, int64_t v, int64_t begin, int64_t end, const int32_t* mask,
                    RowScan& s, RowScan& allowed);
  // The row as floats, -inf where the filter leaves a column out and up to a multiple of 16.
  void (*values)(const void* row, int64_t v, const Filter* filter, float* x);
  // Of the columns in blocks [begin, end) that `mask`, if there is one, allows: those of [low,
  // high) as order keys in order of column, at most all of them; returns how many. Those from
  // `high` on become the sums of the blocks, in units of 2^ref.
  int64_t (*scan_above)(const void* row, int64_t v, int64_t begin, int64_t end, const int32_t* mask,
                        float low, float high, const Scale& scale, double ref, BlockStat* blocks,
                        uint64_t* keys);
  // The sum of a block that is not wide again, in double precision.
  double (*refined_sum)(const void* row, int64_t v, int64_t block, const Filter* filter,
                        const Scale& scale, const BlockStat& stat);
  // For each of n masses the first column of a block up to which the sum of e, relative to the
  // block's reference, exceeds it, or the last with any weight; its margin is how far the mass is
  // from where another column begins.
  void (*columns_at)(const void* row, int64_t v, int64_t block, const Filter* filter,
                     const Scale& scale, const BlockStat& stat, const double* masses, int64_t n,
                     int64_t* columns, double* margins);
  // e of the columns of groups [begin, end), relative to the reference of `stat`; 0 past the row's
  // end.
  void (*weights)(const void* row, int64_t v, int64_t begin, int64_t end, const Filter* filter,
                  const Scale& scale, const BlockStat& stat, float* e);
};
struct RowScanTable {
  RowScanKernels f32, bf16, f16;
};
extern const RowScanTable row_scan_generic, row_scan_avx2, row_scan_avx512;

}  // namespace pyttc
