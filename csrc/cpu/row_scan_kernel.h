// Bound by arithmetic: about 17 vector operations for 16 columns (exp2 takes 11), so a row of 128k
// floats costs more than reading it. Hence one pass over each block with the reference of the
// blocks before it (no wait for the block's maximum; the rare block that exceeds it is done again),
// four chains of float sums of four vectors each, double from there on, and candidates looked for
// only where the block's maximum passes the threshold.
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

// The block's columns above the threshold join the candidates. All masks first: a branch a vector
// would be mispredicted once a candidate.
template <class T>
inline void collect(const T* x, int64_t column, RowScan& s) {
  const vf threshold = set1(s.threshold);
  uint64_t hits[kBlock / 64] = {};
  for (int i = 0; i < kBlock; i += W)
    hits[i / 64] |= uint64_t{bits(load(x + i) > threshold)} << i % 64;
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

// A block whose lanes are still to be added up: that is a chain of a dozen operations, each waiting
// for the one before, so it is left to the end of the segment.
constexpr int kPart = 4 * W * kChains;  // chains of four, whatever the vector's width
struct OpenBlock {
  vf sum[kBlock / kPart], moment[kBlock / kPart];
  double above;
  BlockStat* stat;
  bool any;  // at or above the floor
};
struct OpenBlocks {
  OpenBlock at[kSegmentBlocks];
  int n = 0;
};

// Sums of one pass over a block with the reference as it is; returns the largest values. The moment
// is summed about the value the reference was set by, which is near enough to it for floats.
template <class T>
inline vf sum_block(const T* x, const RowScan& s, OpenBlock& open) {
  const Reference r(s.scale, s.ref, s.floor);
  const vf origin = set1(s.origin);
  vf largest = set1(-kInf);
  for (int part = 0; part < kBlock / kPart; ++part, x += kPart) {
    vf sum[kChains], moment[kChains];
    for (int c = 0; c < kChains; ++c) sum[c] = moment[c] = zero();
    for (int i = 0; i < kPart; i += W * kChains) {
      vf v[kChains];
      for (int c = 0; c < kChains; c += 2) load_two(x + i + c * W, v[c], v[c + 1]);
      for (int c = 0; c < kChains; ++c) {
        largest = max(v[c], largest);
        const vf at = max(r.floor, v[c]), e = power(at, r);
        sum[c] = sum[c] + e;
        moment[c] = fma(e, at - origin, moment[c]);
      }
    }
    open.sum[part] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    open.moment[part] = (moment[0] + moment[1]) + (moment[2] + moment[3]);
  }
  return largest;
}

constexpr double kNothing = 0x1p-111;  // the sum of a block of weights 2^-120 is below

inline void close_blocks(OpenBlocks& open, RowScan& s) {
  for (int i = 0; i < open.n; ++i) {
    const OpenBlock& block = open.at[i];
    double sums[2] = {};
    for (int part = 0; part < kBlock / kPart; ++part)
      add_lanes(block.sum[part], block.moment[part], sums);
    BlockStat& stat = *block.stat;
    stat.sum = sums[0];
    stat.moment = s.scale.c * sums[1] + block.above * sums[0];
    // NaN or +inf, which make the sum NaN; or nothing at or above the floor
    if (!(stat.sum > kNothing)) {
      s.invalid |= stat.sum != stat.sum;
      if (!block.any) stat.sum = stat.moment = 0;
    }
  }
  open.n = 0;
}

template <class T>
inline void scan_full_block(const T* x, int64_t block, RowScan& s, OpenBlocks& open) {
  BlockStat& stat = s.blocks[block];
  if (block % kSegmentBlocks == 0) set_reference(s, largest_of(x));
  if (!s.wide) {
    OpenBlock& now = open.at[open.n];
    vf largest = sum_block(x, s, now);
    if (bits(largest > set1(s.ceiling)) && hmax(largest) < kInf) {
      set_reference(s, hmax(largest));
      if (!s.wide) largest = sum_block(x, s, now);
    }
    if (!s.wide) {
      now.above = s.above;
      now.stat = &stat;
      now.any = bits(largest >= set1(s.floor));
      ++open.n;
      stat.ref = s.ref;
      stat.wide = false;
      if (s.k && bits(largest > set1(s.threshold))) collect(x, block * kBlock, s);
      return;
    }
  }
  float buffer[kBlock];
  for (int i = 0; i < kBlock; i += W) store(buffer + i, load(x + i));
  wide_block(buffer, block, s);
  if (s.k && largest_of(x) > s.threshold) collect(x, block * kBlock, s);
}

// Block `block` of a row: n <= 256 columns at x. Call with blocks of a segment in ascending order,
// from its first on.
template <class T>
inline void scan_block(const T* x, int n, int64_t block, RowScan& s, OpenBlocks& open) {
  if (n == kBlock) {
    scan_full_block(x, block, s, open);
  } else {
    float buffer[kBlock];
    for (int i = 0; i < kBlock; ++i) buffer[i] = i < n ? to_float(x[i]) : -kInf;
    scan_full_block(buffer, block, s, open);
  }
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

template <class T>
void scan(const void* row_, int64_t v, int64_t begin, int64_t end, const Filter* filter,
          RowScan& s) {
  const T* row = static_cast<const T*>(row_);
  OpenBlocks open;
  for (int64_t block = begin; block < end; ++block) {
    const T* x = row + block * kBlock;
    const int n = v - block * kBlock < kBlock ? static_cast<int>(v - block * kBlock) : kBlock;
    T buffer[kBlock];  // not of floats: their columns would be summed in another order
    if (!filter) {
      scan_block(x, n, block, s, open);
    } else if (all_masked(filter->mask, block, n) ||
               !filter_columns(x, n, block * kBlock, *filter, buffer)) {
      if (block % kSegmentBlocks == 0) set_reference(s, -kInf);
      s.blocks[block] = BlockStat();
    } else {
      scan_block(buffer, n, block, s, open);
    }
    if ((block + 1) % kSegmentBlocks == 0) close_blocks(open, s);
  }
  close_blocks(open, s);
}

inline void group_weights(const float* x, const Reference& r, float* e) {
  for (int i = 0; i < kGroup; i += W) store(e + i, weight(load(x + i), r));
}

template <class T>
inline void load_group(const T* row, int64_t v, int64_t group, const Filter* filter, float* x) {
  const int64_t column = group * kGroup;
  const int n = v - column < kGroup ? static_cast<int>(v - column) : kGroup;
  if (!filter && n == kGroup) {
    for (int i = 0; i < kGroup; i += W) store(x + i, load(row + column + i));
    return;
  }
  if (filter) {
    filter_columns(row + column, n, column, *filter, x);
  } else {
    for (int i = 0; i < kGroup; ++i) x[i] = i < n ? to_float(row[column + i]) : -kInf;
  }
}

inline Reference reference_of(const Scale& scale, const BlockStat& stat) {
  return Reference(scale, stat.ref, reference_floor(scale, stat.ref));
}

template <class T>
void weights(const void* row, int64_t v, int64_t begin, int64_t end, const Filter* filter,
             const Scale& scale, const BlockStat& stat, float* e) {
  const Reference r = reference_of(scale, stat);
  for (int64_t group = begin; group < end; ++group, e += kGroup) {
    float x[kGroup];
    load_group(static_cast<const T*>(row), v, group, filter, x);
    if (stat.wide)
      wide_weights(x, scale, stat.ref, e);
    else
      group_weights(x, r, e);
  }
}

template <class T>
int64_t between(const void* row_, int64_t v, const int32_t* mask, float low, float high,
                uint64_t* keys) {
  const T* row = static_cast<const T*>(row_);
  const uint64_t* begin = keys;
  const vf least = set1(low), above = set1(high);
  for (int64_t column = 0; column < v; column += 64) {
    uint64_t hits = 0;
    for (int i = 0; i < 64 && column + i < v; i += W) {
      const int64_t left = v - column - i;
      const T* at = row + column + i;
      const vf x = left < W ? load_n(at, static_cast<int>(left), -kInf) : load(at);
      unsigned hit = bits(x >= least) & ~bits(x >= above);
      if (mask) hit &= static_cast<uint32_t>(mask[(column + i) / 32]) >> (column + i) % 32;
      hits |= uint64_t{hit & ((1u << W) - 1)} << i;
    }
    for (; hits; hits &= hits - 1) {
      const int64_t c = column + __builtin_ctzll(hits);
      *keys++ = order_key(to_float(row[c]), c);
    }
  }
  return keys - begin;
}

template <class T>
void values(const void* row, int64_t v, const Filter* filter, float* x) {
  for (int64_t g = 0; g * kGroup < v; ++g)
    load_group(static_cast<const T*>(row), v, g, filter, x + g * kGroup);
}

inline double multiply_add(double a, double b, double c) {
#if defined(__AVX2__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Plain loops over 16 columns, which compilers turn into vectors of doubles; the terms of 2^f are
// Taylor's, exact to 2e-13. Whole numbers n are read off the low bits of n + 1.5 * 2^52.
template <class T>
double refined_sum(const void* row, int64_t v, int64_t block, const Filter* filter,
                   const Scale& scale, const BlockStat& stat) {
  constexpr double kRound = 0x1.8p52;
  const double c = scale.c, ref = stat.ref;
  const float floor = reference_floor(scale, ref);
  double sum[kGroup] = {};
  for (int64_t g = block * kGroups; g < (block + 1) * kGroups && g * kGroup < v; ++g) {
    float x[kGroup];
    load_group(static_cast<const T*>(row), v, g, filter, x);
    for (int i = 0; i < kGroup; ++i) {
      const double value = x[i] > floor ? x[i] : floor, z = value * c - ref;
      const double shifted = z + kRound, f = z - (shifted - kRound);
      double p = 0x1.e4cf5158b8ecap-28;
      p = multiply_add(p, f, 0x1.b5253d395e7c4p-24);
      p = multiply_add(p, f, 0x1.62c0223a5c824p-20);
      p = multiply_add(p, f, 0x1.ffcbfc588b0c7p-17);
      p = multiply_add(p, f, 0x1.430912f86c787p-13);
      p = multiply_add(p, f, 0x1.5d87fe78a6731p-10);
      p = multiply_add(p, f, 0x1.3b2ab6fba4e77p-7);
      p = multiply_add(p, f, 0x1.c6b08d704a0c0p-5);
      p = multiply_add(p, f, 0x1.ebfbdff82c58fp-3);
      p = multiply_add(p, f, 0x1.62e42fefa39efp-1);
      p = multiply_add(p, f, 1);
      int64_t bits;
      __builtin_memcpy(&bits, &shifted, 8);
      bits = static_cast<int64_t>(static_cast<uint64_t>(bits + 1023) << 52);
      double power;
      __builtin_memcpy(&power, &bits, 8);
      sum[i] = multiply_add(p, power, sum[i]);
    }
  }
  for (int half = kGroup / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

// The sums of 16 groups' columns. Doubles of four groups end in one register, as a matrix is
// transposed, where lane_sum would wait for each of theirs.
#if defined(__AVX512F__)
inline __m512d two_sums(vf a, vf b) {
  const auto eight = [](vf e) {
    return _mm512_add_pd(_mm512_cvtps_pd(lower(e)), _mm512_cvtps_pd(upper(e)));
  };
  const __m512d x = eight(a), y = eight(b);
  return _mm512_add_pd(_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
}
inline __m512d add_halves(__m512d a, __m512d b) {
  return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
}
inline void group_sums(const vf* e, double* sums) {
  for (int g = 0; g < kGroups; g += 8, e += 8)
    _mm512_storeu_pd(sums + g, add_halves(add_halves(two_sums(e[0], e[1]), two_sums(e[2], e[3])),
                                          add_halves(two_sums(e[4], e[5]), two_sums(e[6], e[7]))));
}
#else
inline void group_sums(const vf* e, double* sums) {
  for (int g = 0; g < kGroups; ++g, e += kGroup / W) {
    vf sum = zero();
    for (int i = 0; i < kGroup / W; ++i) sum = sum + e[i];
    sums[g] = lane_sum(sum);
  }
}
#endif

#if defined(__AVX512F__)
template <int kBy>
inline __m512d add_moved_up(__m512d a) {
  const __m512i moved =
      _mm512_alignr_epi64(_mm512_castpd_si512(a), _mm512_setzero_si512(), 8 - kBy);
  return _mm512_add_pd(a, _mm512_castsi512_pd(moved));
}
#endif

// Running sums of 16 doubles; what follows loads them as vectors, which wait for what was stored in
// parts.
inline void accumulate(double* x) {
#if defined(__AVX512F__)
  const auto running = [](__m512d a) {
    return add_moved_up<4>(add_moved_up<2>(add_moved_up<1>(a)));
  };
  const __m512d a = running(_mm512_loadu_pd(x)), b = running(_mm512_loadu_pd(x + 8));
  _mm512_storeu_pd(x, a);
  _mm512_storeu_pd(x + 8, _mm512_add_pd(b, _mm512_permutexvar_pd(_mm512_set1_epi64(7), a)));
#else
  for (int i = 1; i < 16; ++i) x[i] += x[i - 1];
#endif
}

template <class T>
void groups(const void* row_, int64_t v, int64_t block, const Filter* filter, const Scale& scale,
            const BlockStat& stat, double* cumulative) {
  const T* row = static_cast<const T*>(row_) + block * kBlock;
  vf e[kBlock / W];
  if (!filter && !stat.wide && (block + 1) * kBlock <= v) {
    const Reference r = reference_of(scale, stat);
    for (int i = 0; i < kBlock / W; ++i) e[i] = weight(load(row + i * W), r);
  } else {
    float each[kBlock] = {};
    const int64_t begin = block * kGroups, end = (v + kGroup - 1) / kGroup;
    weights<T>(row_, v, begin, end < begin + kGroups ? end : begin + kGroups, filter, scale, stat,
               each);
    for (int i = 0; i < kBlock / W; ++i) e[i] = load(each + i * W);
  }
  group_sums(e, cumulative);
  accumulate(cumulative);
}

template <class T>
int64_t column(const void* row, int64_t v, int64_t group, double rest, const Filter* filter,
               const Scale& scale, const BlockStat& stat, double& margin) {
  float e[kGroup];
  if (!filter && !stat.wide && (group + 1) * kGroup <= v) {
    const Reference r = reference_of(scale, stat);
    const T* x = static_cast<const T*>(row) + group * kGroup;
    for (int i = 0; i < kGroup; i += W) store(e + i, weight(load(x + i), r));
  } else {
    weights<T>(row, v, group, group + 1, filter, scale, stat, e);
  }
  alignas(64) double room[8 + kGroup];
  double* const ends = room + 8;  // where columns end
  ends[-1] = 0;
  for (int i = 0; i < kGroup; ++i) ends[i] = e[i];
  accumulate(ends);
  int before = 0;
  for (int i = 0; i < kGroup; ++i) before += ends[i] <= rest;
  if (before == kGroup) {
    margin = 0;
    while (before > 1 && !(e[before - 1] > 0)) --before;
    return group * kGroup + before - 1;
  }
  const double from_start = rest - ends[before - 1], to_end = ends[before] - rest;
  margin = from_start < to_end ? from_start : to_end;
  return group * kGroup + before;
}

template <class T>
constexpr RowScanKernels kKernels = {scan<T>,   values<T>, between<T>, refined_sum<T>,
                                     groups<T>, column<T>, weights<T>};

}  // namespace
}  // namespace pyttc
