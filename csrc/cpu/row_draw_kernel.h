// What follows a scan, a few columns at a time: the weights of some, where a draw falls, the
// columns of a range of values. Bound by what waits for what, so sums of lanes and running sums are
// made many at once.
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
constexpr RowScanKernels kKernels = {scan<T>,        scan_both<T>, values<T>, between<T>,
                                     refined_sum<T>, groups<T>,    column<T>, weights<T>};

}  // namespace
}  // namespace pyttc
