// What follows a scan: the weights of some columns, where draws fall, what is above a value and
// around it. Bound by what waits for what, so sums of lanes and running sums are made
// many at once, and all draws of a block share its weights.
#pragma once
#include "row_scan_kernel.h"

namespace pyttc {
namespace {

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

// A block, filled with -inf past the row's end; its words of the mask, if there is one.
template <bool kMasked, class T>
inline double sum_above(const T* x, const int32_t* mask, float low, const Reference& r,
                        int64_t column, uint64_t*& keys) {
  const vf least = set1(low);
  double all = 0;
  for (int part = 0; part < kBlock; part += kPart) {
    vf sum[kChains];
    for (vf& chain : sum) chain = zero();
    for (int i = part; i < part + kPart; i += W * kChains) {
      uint64_t hits = 0;
      for (int c = 0; c < kChains; ++c) {
        const int at = i + c * W;
        const vf v = load(x + at);
        vf e = weight(v, r);
        unsigned hit = bits(v >= least) & ~bits(v >= r.floor);
        if (kMasked) {
          const uint32_t word = static_cast<uint32_t>(mask[at / 32]) >> at % 32;
          e = select(from_bits(word & ((1u << W) - 1)), e, zero());
          hit &= word;
        }
        sum[c] = sum[c] + e;
        hits |= uint64_t{hit & ((1u << W) - 1)} << c * W;
      }
      for (; hits; hits &= hits - 1) {
        const int at = i + __builtin_ctzll(hits);
        *keys++ = order_key(to_float(x[at]), column + at);
      }
    }
    all += lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  return all;
}

template <class T>
int64_t scan_above(const void* row, int64_t v, int64_t begin, int64_t end, const int32_t* mask,
                   float low, float high, const Scale& scale, double ref, BlockStat* blocks,
                   uint64_t* keys) {
  const RowBlocks<T> columns{static_cast<const T*>(row), v, nullptr};
  const float floor = reference_floor(scale, ref);
  const Reference r(scale, ref, floor > high ? floor : high);
  const uint64_t* const first = keys;
  T room[kBlock];
  for (int64_t block = begin; block < end; ++block) {
    const T* x = columns.at(block, room);
    BlockStat stat;
    stat.ref = ref;
    if (mask) {
      int32_t words[kBlock / 32] = {};
      __builtin_memcpy(words, mask + block * (kBlock / 32), (columns.columns(block) + 31) / 32 * 4);
      stat.sum = sum_above<true>(x, words, low, r, block * kBlock, keys);
    } else {
      stat.sum = sum_above<false>(x, nullptr, low, r, block * kBlock, keys);
    }
    blocks[block] = stat;
  }
  return keys - first;
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

// Running sums of 16 doubles. In registers where there is room, and found there: what is stored as
// a vector and then read in parts waits.
#if defined(__AVX512F__)
template <int kBy>
inline __m512d add_moved_up(__m512d a) {
  const __m512i moved =
      _mm512_alignr_epi64(_mm512_castpd_si512(a), _mm512_setzero_si512(), 8 - kBy);
  return _mm512_add_pd(a, _mm512_castsi512_pd(moved));
}
inline __m512d running(__m512d a) { return add_moved_up<4>(add_moved_up<2>(add_moved_up<1>(a))); }

class Running {
 public:
  Running(__m512d a, __m512d b)
      : low_(running(a)),
        high_(_mm512_add_pd(running(b), _mm512_permutexvar_pd(_mm512_set1_epi64(7), low_))) {}

  int at_most(double limit) const {  // how many are
    const __m512d most = _mm512_set1_pd(limit);
    const unsigned low = _mm512_cmp_pd_mask(low_, most, _CMP_LE_OQ);
    return __builtin_popcount(low | _mm512_cmp_pd_mask(high_, most, _CMP_LE_OQ) << 8);
  }
  double sum(int n) const {  // of the first n
    const __mmask8 any = n > 0;
    return _mm512_cvtsd_f64(
        _mm512_maskz_permutex2var_pd(any, low_, _mm512_set1_epi64(n - 1), high_));
  }

 private:
  __m512d low_, high_;
};

// Doubles of four groups end in one register, as a matrix is transposed, where lane_sum would wait
// for each of theirs.
inline __m512d eight_sums(const float* e) {
  const auto halves = [&](int i) {
    const float* at = e + i * W;
    return _mm512_cvtps_pd(_mm256_add_ps(_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)));
  };
  const auto two = [&](int i) {
    const __m512d x = halves(i), y = halves(i + 1);
    return _mm512_add_pd(_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
  };
  const auto add = [](__m512d a, __m512d b) {
    return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
  };
  return add(add(two(0), two(2)), add(two(4), two(6)));
}
inline Running groups_of(const float* e) { return {eight_sums(e), eight_sums(e + 8 * kGroup)}; }
inline Running columns_of(const float* e) {
  const vf x = load(e);
  return {_mm512_cvtps_pd(lower(x)), _mm512_cvtps_pd(upper(x))};
}
#else
class Running {
 public:
  template <class Get>
  explicit Running(Get get) {
    double sum = 0;
    for (int i = 0; i < 16; ++i) sums_[i] = sum += get(i);
  }
  int at_most(double limit) const {
    int n = 0;
    for (int i = 0; i < 16; ++i) n += sums_[i] <= limit;
    return n;
  }
  double sum(int n) const { return n > 0 ? sums_[n - 1] : 0; }

 private:
  double sums_[16];
};
inline Running groups_of(const float* e) {
  return Running([&](int group) {
    vf sum = zero();
    for (int i = 0; i < kGroup; i += W) sum = sum + load(e + group * kGroup + i);
    return lane_sum(sum);
  });
}
inline Running columns_of(const float* e) {
  return Running([&](int i) { return e[i]; });
}
#endif

template <class T>
void columns_at(const void* row_, int64_t v, int64_t block, const Filter* filter,
                const Scale& scale, const BlockStat& stat, const double* masses, int64_t n,
                int64_t* columns, double* margins) {
  alignas(64) float e[kBlock];
  if (!filter && !stat.wide && (block + 1) * kBlock <= v) {
    const Reference r = reference_of(scale, stat);
    const T* x = static_cast<const T*>(row_) + block * kBlock;
    for (int i = 0; i < kBlock; i += W) store(e + i, weight(load(x + i), r));
  } else {
    const int64_t begin = block * kGroups, end = (v + kGroup - 1) / kGroup;
    for (int i = 0; i < kBlock; i += W) store(e + i, zero());
    weights<T>(row_, v, begin, end < begin + kGroups ? end : begin + kGroups, filter, scale, stat,
               e);
  }
  const Running groups = groups_of(e);
  for (int64_t i = 0; i < n; ++i) {
    int group = groups.at_most(masses[i]);
    // Where rounding leaves the groups short of the block's own sum, the last with any weight is
    // meant.
    if (group == kGroups)
      for (--group; group > 0 && !(groups.sum(group + 1) > groups.sum(group));) --group;
    const double rest = masses[i] - groups.sum(group);
    const float* in_group = e + group * kGroup;
    const Running ends = columns_of(in_group);
    int before = ends.at_most(rest);
    if (before < kGroup) {
      const double from_start = rest - ends.sum(before), to_end = ends.sum(before + 1) - rest;
      margins[i] = from_start < to_end ? from_start : to_end;
    } else {
      margins[i] = 0;
      while (before > 1 && !(in_group[before - 1] > 0)) --before;
      --before;
    }
    columns[i] = block * kBlock + group * kGroup + before;
  }
}

template <class T>
constexpr RowScanKernels kKernels = {scan<T>,        scan_both<T>,  values<T>, scan_above<T>,
                                     refined_sum<T>, columns_at<T>, weights<T>};

}  // namespace
}  // namespace pyttc
