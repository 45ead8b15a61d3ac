// Bound by arithmetic: about 17 vector operations for 16 columns (exp2 takes 11), so a row of 128k
// floats costs more than reading it. Hence one pass over each block with the reference of the
// blocks before it (no wait for the block's maximum; the rare block that exceeds it is done again),
// four chains of float sums of four vectors each, double from there on, and candidates looked for
// at the end, where a block's maximum is among the k best maxima: then few blocks are looked at
// twice, and few branches are mispredicted.
#pragma once
#include "row_weight.h"

namespace pyttc {
namespace {

constexpr int kChains = 4;

#if defined(__AVX512F__)
inline double lane_sum(vf a) {
  return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)),
                                            _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))));
}
#else
inline double lane_sum(vf a) {
  float lane[W];
  double sum[W];
  store(lane, a);
  for (int i = 0; i < W; ++i) sum[i] = lane[i];
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}
#endif

// Of a block's n columns those above the threshold, and in the mask unless null, join the
// candidates. All masks of lanes first: a branch a vector would be mispredicted once a candidate.
template <class T>
inline void collect(const T* x, int n, const int32_t* mask, int64_t column, RowScan& s) {
  const vf threshold = set1(s.threshold);
  uint64_t hits[kBlock / 64] = {};
  for (int i = 0; i < kBlock; i += W)
    hits[i / 64] |= uint64_t{bits(load(x + i) > threshold)} << i % 64;
  if (mask)
    for (int i = 0; i < n; i += 32)
      hits[i / 64] &= ~(uint64_t{~static_cast<uint32_t>(mask[i / 32])} << i % 64);
  uint64_t* out = s.keys + s.count;
  for (int i = 0; i < kBlock; i += 64)
    for (uint64_t hit = hits[i / 64]; hit; hit &= hit - 1) {
      const int j = i + __builtin_ctzll(hit);
      *out++ = order_key(to_float(x[j]), column + j);
    }
  s.count = out - s.keys;
  if (s.count >= s.full) compact(s);
}

template <class T>
inline float largest_of(const T* x) {
  vf m = set1(-kInf);
  for (int i = 0; i < kBlock; i += W) m = max(load(x + i), m);
  return hmax(m);
}

// Adds the sums of the lanes of a and of b to both[0] and both[1].
#if defined(__AVX512F__)
inline __m512d doubles(vf a) {
  return _mm512_cvtps_pd(
      _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}
inline void add_lanes(vf a, vf b, double* both) {
  const __m512d x = doubles(a), y = doubles(b);
  const __m512d eight = _mm512_add_pd(_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
  const __m256d four =
      _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  _mm_storeu_pd(both, _mm_add_pd(_mm_loadu_pd(both), two));
}
#else
inline void add_lanes(vf a, vf b, double* both) {
  both[0] += lane_sum(a);
  both[1] += lane_sum(b);
}
#endif

// 2 * W columns, in an order of their own: halves of a register of bfloat16 are its even and its
// odd columns, which saves spreading them out.
template <class T>
inline void load_two(const T* x, vf& a, vf& b) {
  a = load(x);
  b = load(x + W);
}
#if defined(__AVX512F__)
inline void load_two(const bf16* x, vf& a, vf& b) {
  const __m512i both = _mm512_loadu_si512(x);
  a.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  b.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(~0xffff)));
}
#elif defined(__AVX2__)
inline void load_two(const bf16* x, vf& a, vf& b) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  a.v = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  b.v = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(~0xffff)));
}
#endif

inline uint32_t even_bits(uint32_t x) {
  x &= 0x55555555;
  x = (x | x >> 1) & 0x33333333;
  x = (x | x >> 2) & 0x0f0f0f0f;
  x = (x | x >> 4) & 0x00ff00ff;
  return (x | x >> 8) & 0xffff;
}
// Which columns of load_two(x + column) the words of a mask allow.
template <class T>
inline void allowed_two(const T*, const int32_t* mask, int column, vmask& a, vmask& b) {
  const uint32_t word = static_cast<uint32_t>(mask[column / 32]) >> column % 32;
  const uint32_t next = static_cast<uint32_t>(mask[(column + W) / 32]) >> (column + W) % 32;
  a = from_bits(word & ((1u << W) - 1));
  b = from_bits(next & ((1u << W) - 1));
}
#if defined(__AVX2__)
inline void allowed_two(const bf16*, const int32_t* mask, int column, vmask& a, vmask& b) {
  const uint32_t word = static_cast<uint32_t>(mask[column / 32]) >> column % 32;
  a = from_bits(even_bits(word) & ((1u << W) - 1));
  b = from_bits(even_bits(word >> 1) & ((1u << W) - 1));
}
#endif

// A block whose lanes are still to be added up: that is a chain of a dozen operations, each waiting
// for the one before, so it is left to the end of the segment.
constexpr int kPart = 4 * W * kChains;  // chains of four, whatever the vector's width
struct OpenBlock {
  vf sum[kBlock / kPart], moment[kBlock / kPart], allowed[kBlock / kPart];
  vf largest, largest_allowed;
  double above;
  BlockStat *stat, *allowed_stat;  // the latter null without a mask
};
struct OpenBlocks {
  OpenBlock at[kSegmentBlocks];
  int n = 0;
};

// Sums of one pass over a block with the reference as it is. The moment is summed about the value
// the reference was set by, which is near enough to it for floats.
// `mask`: the block's words, if kMasked.
template <bool kMasked, class T>
inline void sum_block(const T* x, const int32_t* mask, const RowScan& s, OpenBlock& open) {
  const Reference r(s.scale, s.ref, s.floor);
  const vf origin = set1(s.origin), none = set1(-kInf);
  vf largest = none, largest_allowed = none;
  for (int part = 0; part < kBlock / kPart; ++part) {
    vf sum[kChains], moment[kChains], allowed[kChains];
    for (int c = 0; c < kChains; ++c) sum[c] = moment[c] = allowed[c] = zero();
    for (int i = part * kPart; i < (part + 1) * kPart; i += W * kChains) {
      vf v[kChains];
      vmask kept[kChains];
      for (int c = 0; c < kChains; c += 2) {
        load_two(x + i + c * W, v[c], v[c + 1]);
        if (kMasked) allowed_two(x, mask, i + c * W, kept[c], kept[c + 1]);
      }
      for (int c = 0; c < kChains; ++c) {
        largest = max(v[c], largest);
        const vf at = max(r.floor, v[c]), e = power(at, r);
        sum[c] = sum[c] + e;
        moment[c] = fma(e, at - origin, moment[c]);
        if (!kMasked) continue;
        allowed[c] = allowed[c] + select(kept[c], e, zero());
        largest_allowed = max(select(kept[c], v[c], none), largest_allowed);
      }
    }
    open.sum[part] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    open.moment[part] = (moment[0] + moment[1]) + (moment[2] + moment[3]);
    open.allowed[part] = (allowed[0] + allowed[1]) + (allowed[2] + allowed[3]);
  }
  open.largest = largest;
  open.largest_allowed = largest_allowed;
}

constexpr double kNothing = 0x1p-111;  // the sum of a block of weights 2^-120 is below

inline void close_blocks(OpenBlocks& open, RowScan& s) {
  for (int i = 0; i < open.n; ++i) {
    const OpenBlock& block = open.at[i];
    double sums[2] = {};
    for (int part = 0; part < kBlock / kPart; ++part)
      add_lanes(block.sum[part], block.moment[part], sums);
    BlockStat& stat = *block.stat;
    stat.largest = hmax(block.largest);
    stat.sum = sums[0];
    stat.moment = s.scale.c * sums[1] + block.above * sums[0];
    // NaN or +inf, which make the sum NaN; or nothing at or above the floor
    if (!(stat.sum > kNothing)) {
      s.invalid |= stat.sum != stat.sum;
      if (!(stat.largest >= reference_floor(s.scale, stat.ref))) stat.sum = stat.moment = 0;
    }
    if (!block.allowed_stat) continue;
    double allowed[2] = {};
    for (int part = 0; part < kBlock / kPart; ++part)
      add_lanes(block.allowed[part], zero(), allowed);
    *block.allowed_stat = {allowed[0] > kNothing ? allowed[0] : 0, 0, stat.ref, false,
                           hmax(block.largest_allowed)};
  }
  open.n = 0;
}

// The columns of a row that a mask allows, scanned beside all of them in the same units.
struct Allowed {
  RowScan& s;
  const int32_t* words = nullptr;  // of the block
  bool wide = false;               // a block was in doubles: nothing is known
};

// Block `block` of a row, its columns at x. Call with blocks of a segment in ascending order, from
// its first on.
template <class T>
inline void scan_block(const T* x, int64_t block, RowScan& s, OpenBlocks& open,
                       Allowed* allowed = nullptr) {
  BlockStat& stat = s.blocks[block];
  const auto sum = [&](OpenBlock& now) {
    if (allowed)
      sum_block<true>(x, allowed->words, s, now);
    else
      sum_block<false>(x, nullptr, s, now);
  };
  if (block % kSegmentBlocks == 0) set_reference(s, largest_of(x));
  if (!s.wide) {
    OpenBlock& now = open.at[open.n];
    sum(now);
    if (bits(now.largest > set1(s.ceiling)) && hmax(now.largest) < kInf) {
      set_reference(s, hmax(now.largest));
      if (!s.wide) sum(now);
    }
    if (!s.wide) {
      now.above = s.above;
      now.stat = &stat;
      now.allowed_stat = allowed ? &allowed->s.blocks[block] : nullptr;
      ++open.n;
      stat.ref = s.ref;
      stat.wide = false;
      return;
    }
  }
  if (allowed) allowed->wide = true;
  float buffer[kBlock];
  for (int i = 0; i < kBlock; i += W) store(buffer + i, load(x + i));
  wide_block(buffer, block, s);
}

// The lanes of W columns from `column` on that the filter keeps, v their values.
inline unsigned kept_lanes(vf v, int64_t column, const Filter& filter) {
  constexpr unsigned kAll = (1u << W) - 1;
  const vf floor = set1(filter.floor);
  unsigned at_floor = bits(v >= floor);
  const int64_t left = filter.last - column + 1;  // columns that may still equal the floor
  if (left < W) at_floor &= left > 0 ? (1u << left) - 1 : 0;
  unsigned kept = bits(v > floor) | at_floor;
  if (filter.mask) kept &= static_cast<uint32_t>(filter.mask[column / 32]) >> column % 32;
  return kept & kAll;
}

// n columns from `column`, a multiple of W, on, -inf for those the filter leaves out and up to the
// next multiple of 16; false if that is all of them.
template <class T, class Out>
inline bool filter_columns(const T* x, int n, int64_t column, const Filter& filter, Out* out) {
  unsigned any = 0;
  const bool equal = column + n - 1 <= filter.last;  // all columns may equal the floor, or none
  if (n == kBlock && (equal || column > filter.last)) {
    const vf floor = set1(filter.floor);
    for (int i = 0; i < kBlock; i += W) {
      const vf v = load(x + i);
      unsigned kept = equal ? bits(v >= floor) : bits(v > floor);
      if (filter.mask)
        kept &= static_cast<uint32_t>(filter.mask[(column + i) / 32]) >> (column + i) % 32;
      store(out + i, select(from_bits(kept), v, set1(-kInf)));
      any |= kept;
    }
    return any;
  }
  for (int i = 0; i < (n + kGroup - 1) / kGroup * kGroup; i += W) {
    vf v = set1(-kInf);
    unsigned kept = 0;
    if (i < n) {
      v = n - i < W ? load_n(x + i, n - i, -kInf) : load(x + i);
      kept = kept_lanes(v, column + i, filter);
    }
    store(out + i, select(from_bits(kept), v, set1(-kInf)));
    any |= kept;
  }
  return any;
}

inline bool all_masked(const int32_t* mask, int64_t block, int n) {
  if (!mask) return false;
  int32_t any = 0;
  for (int i = 0; i < (n + 31) / 32; ++i) any |= mask[block * (kBlock / 32) + i];
  return any == 0;
}

// A row's blocks as a scan sees them: -inf where a filter leaves a column out and past the end.
template <class T>
struct RowBlocks {
  const T* row;
  int64_t v;
  const Filter* filter;

  int columns(int64_t block) const {
    return v - block * kBlock < kBlock ? static_cast<int>(v - block * kBlock) : kBlock;
  }
  // All 256 columns, in `room` if need be; null if the filter leaves none.
  const T* at(int64_t block, T* room) const {
    const T* x = row + block * kBlock;
    const int n = columns(block);
    if (!filter && n == kBlock) return x;
    if (n < kBlock)
      for (int i = 0; i < kBlock; i += W) store(room + i, set1(-kInf));
    if (filter) {
      const bool none = all_masked(filter->mask, block, n) ||
                        !filter_columns(x, n, block * kBlock, *filter, room);
      return none ? nullptr : room;
    }
    for (int i = 0; i < n; ++i) room[i] = x[i];
    return room;
  }
};

// Of blocks [begin, end), which are summed, the columns that may be among the k best join the
// candidates.
template <class T>
inline void collect_best(const RowBlocks<T>& blocks, const int32_t* mask, int64_t begin,
                         int64_t end, RowScan& s) {
  if (!s.k) return;
  raise_threshold(s, begin, end);
  T room[kBlock];
  for (int64_t block = begin; block < end; ++block)
    if (s.blocks[block].largest > s.threshold)
      collect(blocks.at(block, room), blocks.columns(block),
              mask ? mask + block * (kBlock / 32) : nullptr, block * kBlock, s);
}

template <class T>
void scan(const void* row, int64_t v, int64_t begin, int64_t end, const Filter* filter,
          RowScan& s) {
  const RowBlocks<T> blocks{static_cast<const T*>(row), v, filter};
  T room[kBlock];
  OpenBlocks open;
  for (int64_t block = begin; block < end; ++block) {
    if (const T* x = blocks.at(block, room)) {
      scan_block(x, block, s, open);
    } else {
      if (block % kSegmentBlocks == 0) set_reference(s, -kInf);
      s.blocks[block] = BlockStat();
    }
    if ((block + 1) % kSegmentBlocks == 0) close_blocks(open, s);
  }
  close_blocks(open, s);
  collect_best(blocks, nullptr, begin, end, s);
}

template <class T>
bool scan_both(const void* row, int64_t v, int64_t begin, int64_t end, const int32_t* mask,
               RowScan& s, RowScan& in_mask) {
  const RowBlocks<T> blocks{static_cast<const T*>(row), v, nullptr};
  T room[kBlock];
  OpenBlocks open;
  Allowed allowed{in_mask};
  for (int64_t block = begin; block < end; ++block) {
    const int n = blocks.columns(block);
    int32_t words[kBlock / 32] = {};  // of the last block, where the mask's may end early
    allowed.words = mask + block * (kBlock / 32);
    if (n < kBlock) {
      for (int i = 0; i < (n + 31) / 32; ++i) words[i] = allowed.words[i];
      allowed.words = words;
    }
    scan_block(blocks.at(block, room), block, s, open, &allowed);
    if ((block + 1) % kSegmentBlocks == 0) close_blocks(open, s);
  }
  close_blocks(open, s);
  collect_best(blocks, nullptr, begin, end, s);
  if (allowed.wide) return false;
  collect_best(blocks, mask, begin, end, in_mask);
  return true;
}

}  // namespace
}  // namespace pyttc
