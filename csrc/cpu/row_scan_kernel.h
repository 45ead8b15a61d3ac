// Bound by arithmetic: about 17 vector operations for 16 columns (exp2 takes 11), so a row of 128k
// floats costs more than reading it. Hence one pass over each block with the reference of the
// blocks before it (no wait for the block's maximum; the rare block that exceeds it is done again),
// four chains of float sums of four vectors each, double from there on, and candidates looked for
// only where the block's maximum passes the threshold.
#pragma once
#include "row_scan.h"
#include "simd.h"

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

// Constants of one reference, in registers.
struct Reference {
  vf high, low, neg_high, neg_ref, floor;
  Reference(const Scale& scale, float neg_ref, float floor)
      : high(set1(scale.high)),
        low(set1(scale.low)),
        neg_high(set1(-scale.high)),
        neg_ref(set1(neg_ref)),
        floor(set1(floor)) {}
};

// 2^f for |f| <= 1/2: minimax in relative error with float coefficients (3e-9 before rounding),
// exact at 0.
inline vf exp2_reduced(vf f) {
  vf p = set1(0x1.4168cep-13f);
  p = fma(p, f, set1(0x1.5f082cp-10f));
  p = fma(p, f, set1(0x1.3b2de4p-7f));
  p = fma(p, f, set1(0x1.c6af7cp-5f));
  p = fma(p, f, set1(0x1.ebfbdcp-3f));
  p = fma(p, f, set1(0x1.62e430p-1f));
  return fma(p, f, set1(1.f));
}

// Splits x * scale - ref into a whole number and a fraction; x at least the floor and finite, or
// NaN.
inline void split(vf x, const Reference& r, vf& whole, vf& fraction) {
#if defined(__AVX2__)
  const vf n = round(x * r.neg_high);
  fraction = fma(x, r.low, fma(x, r.high, n));  // the product is exact inside the fma
  whole = r.neg_ref - n;
#else  // no fma: the exact product of two floats needs doubles
  for (int i = 0; i < W; ++i) {
    const double z = static_cast<double>(x.v[i]) * r.high.v[i];
    const double n = (z + 0x1.8p52) - 0x1.8p52;  // to a whole number
    fraction.v[i] = static_cast<float>(z - n + static_cast<double>(x.v[i]) * r.low.v[i]);
    whole.v[i] = static_cast<float>(n + r.neg_ref.v[i]);
  }
#endif
}

// a * 2^n for -126 <= n <= 127.
inline vf scale2_normal(vf a, vf n) {
#if defined(__AVX512F__)
  return scale2(a, n);
#elif defined(__AVX2__)
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
#else
  return scale2(a, n);
#endif
}

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

// Sums of one pass over a block with the reference as it is; returns the block's largest value.
template <class T>
inline float sum_block(const T* x, const RowScan& s, BlockStat& stat) {
  const Reference r(s.scale, s.neg_ref, s.floor);
  vf largest = set1(-kInf);
  stat.sum = stat.moment = 0;
  constexpr int kPart = 4 * W * kChains;  // chains of four, whatever the vector's width
  for (int part = 0; part < kBlock; part += kPart) {
    vf sum[kChains], moment[kChains];
    for (int c = 0; c < kChains; ++c) sum[c] = moment[c] = zero();
    for (int i = part; i < part + kPart; i += W * kChains)
      for (int c = 0; c < kChains; ++c) {
        const vf v = load(x + i + c * W);
        largest = max(v, largest);
        vf whole, f;
        split(max(r.floor, v), r, whole, f);
        const vf e = scale2_normal(exp2_reduced(f), whole);
        sum[c] = sum[c] + e;
        moment[c] = fma(e, whole + f, moment[c]);
      }
    stat.sum += lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    stat.moment += lane_sum((moment[0] + moment[1]) + (moment[2] + moment[3]));
  }
  return hmax(largest);
}

template <class T>
inline void scan_full_block(const T* x, int64_t block, RowScan& s) {
  BlockStat& stat = s.blocks[block];
  if (block % kSegmentBlocks == 0) set_reference(s, largest_of(x));
  float largest = 0;
  if (!s.wide) {
    largest = sum_block(x, s, stat);
    if (largest > s.ceiling && largest < kInf) {
      set_reference(s, largest);
      if (!s.wide) largest = sum_block(x, s, stat);
    }
  }
  if (s.wide) {
    float buffer[kBlock];
    for (int i = 0; i < kBlock; i += W) store(buffer + i, load(x + i));
    wide_block(buffer, block, s);
    largest = largest_of(x);
  } else {
    stat.ref = -s.neg_ref;
    stat.wide = false;
    if (largest == kInf || stat.sum != stat.sum) {
      s.invalid = true;
      stat.sum = stat.moment = 0;
    } else if (largest < s.floor) {
      stat.sum = stat.moment = 0;
    }
  }
  if (largest > s.threshold && s.k) collect(x, block * kBlock, s);
}

// Block `block` of a row: n <= 256 columns at x. Call with blocks of a segment in ascending order,
// from its first on.
template <class T>
inline void scan_block(const T* x, int n, int64_t block, RowScan& s) {
  if (n == kBlock) {
    scan_full_block(x, block, s);
  } else {
    float buffer[kBlock];
    for (int i = 0; i < kBlock; ++i) buffer[i] = i < n ? to_float(x[i]) : -kInf;
    scan_full_block(buffer, block, s);
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

// n columns from `column`, a multiple of W, on as floats, -inf for those the filter leaves out and
// up to the next multiple of 16; false if that is all of them.
template <class T>
inline bool filter_columns(const T* x, int n, int64_t column, const Filter& filter, float* out) {
  unsigned any = 0;
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
  for (int64_t block = begin; block < end; ++block) {
    const T* x = row + block * kBlock;
    const int n = v - block * kBlock < kBlock ? static_cast<int>(v - block * kBlock) : kBlock;
    if (!filter) {
      scan_block(x, n, block, s);
      continue;
    }
    float buffer[kBlock];
    if (all_masked(filter->mask, block, n) ||
        !filter_columns(x, n, block * kBlock, *filter, buffer)) {
      if (block % kSegmentBlocks == 0) set_reference(s, -kInf);
      s.blocks[block] = BlockStat();
    } else {
      scan_block(buffer, n, block, s);
    }
  }
}

// e of 16 columns at x, exactly 0 for those 2^-120 below the reference.
inline void group_weights(const float* x, const Reference& r, float* e) {
  for (int i = 0; i < kGroup; i += W) {
    const vf v = load(x + i);
    vf whole, f;
    split(max(r.floor, v), r, whole, f);
    store(e + i, select(v >= r.floor, scale2_normal(exp2_reduced(f), whole), zero()));
  }
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
  return Reference(scale, static_cast<float>(-stat.ref), reference_floor(scale, stat.ref));
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
void values(const void* row, int64_t v, const Filter* filter, float* x) {
  for (int64_t g = 0; g * kGroup < v; ++g)
    load_group(static_cast<const T*>(row), v, g, filter, x + g * kGroup);
}

// Plain loops over 16 columns, which compilers turn into vectors of doubles; Taylor's 11 terms are
// exact to 2e-13.
template <class T>
void refine(const void* row, int64_t v, int64_t block, const Filter* filter, const Scale& scale,
            BlockStat& stat) {
  constexpr double kRound = 0x1.8p52, kLn2 = 0.69314718055994530942;
  const double c = scale.c, ref = stat.ref, floor = reference_floor(scale, ref);
  double sum[kGroup] = {}, moment[kGroup] = {};
  for (int64_t g = block * kGroups; g < (block + 1) * kGroups && g * kGroup < v; ++g) {
    float x[kGroup];
    load_group(static_cast<const T*>(row), v, g, filter, x);
    for (int i = 0; i < kGroup; ++i) {
      const double value = x[i], z = (value < floor ? floor : value) * c;
      const double n = (z + kRound) - kRound, f = (z - n) * kLn2;
      double p = 1;
      for (int k = 10; k > 0; --k) p = 1 + p * f * (1. / k);
      const int64_t bits = static_cast<int64_t>(static_cast<int32_t>(n - ref) + 1023) << 52;
      double power;
      __builtin_memcpy(&power, &bits, 8);
      const double e = value < floor ? 0 : p * power;
      sum[i] += e;
      moment[i] += e * (z - ref);
    }
  }
  for (int half = kGroup / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      sum[i] += sum[i + half];
      moment[i] += moment[i + half];
    }
  stat.sum = sum[0];
  stat.moment = moment[0];
}

template <class T>
void groups(const void* row, int64_t v, int64_t block, const Filter* filter, const Scale& scale,
            const BlockStat& stat, double* cumulative) {
  const int64_t first = block * kGroups, in_row = (v + kGroup - 1) / kGroup - first;
  const int n = in_row < kGroups ? static_cast<int>(in_row) : kGroups;
  float e[kBlock];
  weights<T>(row, v, first, first + n, filter, scale, stat, e);
  double sum = 0;
  for (int g = 0; g < kGroups; ++g) {
    vf group = zero();
    for (int i = 0; g < n && i < kGroup; i += W) group = group + load(e + g * kGroup + i);
    cumulative[g] = sum += lane_sum(group);
  }
}

template <class T>
int64_t column(const void* row, int64_t v, int64_t group, double rest, const Filter* filter,
               const Scale& scale, const BlockStat& stat) {
  float e[kGroup];
  weights<T>(row, v, group, group + 1, filter, scale, stat, e);
  double sum = 0;
  int before = 0;
  for (int i = 0; i < kGroup; ++i) {
    sum += static_cast<double>(e[i]);
    before += sum <= rest;
  }
  if (before == kGroup)
    while (before > 1 && !(e[before - 1] > 0)) --before;
  return group * kGroup + (before < kGroup && sum > rest ? before : before - 1);
}

template <class T>
constexpr RowScanKernels kKernels = {scan<T>,   values<T>, refine<T>,
                                     groups<T>, column<T>, weights<T>};

}  // namespace
}  // namespace pyttc
