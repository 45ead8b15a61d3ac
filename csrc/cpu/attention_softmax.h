// What all attention kernels share: the softmax of one tile, and the last merge of a row.
#pragma once
#include "attention_tile.h"
#include "fold.h"

namespace pyttc {
namespace {

constexpr int kBlock =
    48;  // rows that go through a tile together, their scores in the first-level cache
constexpr int kTileVectors = kTile / W;
// Weights are held this much smaller, so that sums of a million of the largest values do not
// overflow.
constexpr int kDown = 20;
constexpr float kSmall = 1.f / (1 << kDown);

// Transposes W vectors of W.
#if defined(__AVX512F__)
inline void transpose(vf* x) {
  __m512 a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  __m512 b[16];
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d lo = _mm512_castps_pd(a[i + j]), hi = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
    }
  // b[4 * i + c] holds, in its 128-bit lane j, column 4 * j + c of rows 4 * i to 4 * i + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 s = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44);
    const __m512 t = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xee);
    const __m512 u = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44);
    const __m512 w = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xee);
    x[c].v = _mm512_shuffle_f32x4(s, u, 0x88);
    x[4 + c].v = _mm512_shuffle_f32x4(s, u, 0xdd);
    x[8 + c].v = _mm512_shuffle_f32x4(t, w, 0x88);
    x[12 + c].v = _mm512_shuffle_f32x4(t, w, 0xdd);
  }
}
#elif defined(__AVX2__)
inline void transpose(vf* x) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
  for (int c = 0; c < 4; ++c) {
    x[c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    x[4 + c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}
#else
inline void transpose(vf* x) {
  vf t[W];
  for (int i = 0; i < W; ++i) t[i] = x[i];
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < W; ++j) x[i].v[j] = t[j].v[i];
}
#endif

inline vf negate(vf a) { return {-a.v}; }

// tanh from expm1, about 3 ulp: e = exp(2|x|) - 1, tanh = e / (e + 2).
inline vf tanh(vf x) {
  const vf high = max(x, negate(x));
  const vf y = min(set1(20.f), high + high);
  const vf n = round(y * set1(kLog2e));
  const vf r = fnma(n, set1(kLn2Low), fnma(n, set1(kLn2High), y));
  vf p = set1(0x1.6a2344p-10f);
  p = fma(p, r, set1(0x1.123a6ap-7f));
  p = fma(p, r, set1(0x1.5558f4p-5f));
  p = fma(p, r, set1(0x1.555490p-3f));
  p = fma(p, r, set1(0x1.fffffcp-2f));
  p = fma(p * r, r, r);
  const vf two_n = scale2(set1(1.f), n);
  const vf e = fma(two_n, p, two_n - set1(1.f));
  const vf t = {e.v / (e + set1(2.f)).v};
  return select(set1(0.f) > x, negate(t), t);
}

// What each row's vector folds to, a lane a row: few rows one by one.
template <class One, class All>
inline vf side_by_side(vf* of_row, int rows, One one, All all) {
  if (rows > W / 4) {
    for (int r = rows; r < W; ++r) of_row[r] = zero();
    return all(of_row);
  }
  float lane[W] = {};
  for (int r = 0; r < rows; ++r) lane[r] = one(of_row[r]);
  return load(lane);
}

// Scores to weights for at most W rows: s becomes kSmall * 2^(s * log2(e) - m), two vectors at a
// time as `keep` stores them, m and l move on, alpha is what the sums so far are to be multiplied
// with.
template <class F>
inline void softmax(float* s, int rows, const AttentionRows& a, const int* first, float* m,
                    float* l, float* alpha, F keep) {
  // Whether scores keep their order and the scale's precision when all is done in one factor.
  const bool plain = a.softcap <= 0.f && a.scale > 0x1p-100f && a.scale < 0x1p100f;
  const vf factor = set1(plain ? a.scale * kLog2e : kLog2e);
  const uint64_t until = ~uint64_t{0} >> (kTile - a.end);
  vf of_row[W];
  for (int r = 0; r < rows; ++r) {
    float* row = s + r * kTile;
    if (!plain)
      for (int v = 0; v < kTileVectors; ++v) {
        vf x = load(row + v * W) * set1(a.scale);
        if (a.softcap > 0.f) x = set1(a.softcap) * tanh(x / set1(a.softcap));
        store(row + v * W, x);
      }
    const int from = first ? first[r] : a.begin;
    const uint64_t seen = from < a.end ? until & ~uint64_t{0} << from : 0;
    vf high = set1(-kInf);
    for (int v = 0; v < kTileVectors; ++v) {
      vf x = load(row + v * W);
      if (~seen) {
        const unsigned lanes = static_cast<unsigned>(seen >> (v * W)) & ((1u << W) - 1);
        x = select(from_bits(lanes), x, set1(-kInf));
        store(row + v * W, x);
      }
      high = max(high, x);
    }
    of_row[r] = high;
  }
  const vf old = load(m), now = max(old, side_by_side(of_row, rows, hmax, hmaxes) * factor);
  // Nothing seen yet has the maximum -inf, which must not be subtracted from itself.
  const vf base = select(now > set1(-kInf), now, zero());
  const vf ratio = exp2(old - base);
  store(m, now);
  store(alpha, ratio);
  float base_of[W];
  store(base_of, base);
  for (int r = 0; r < rows; ++r) {
    const vf b = set1(base_of[r]);
    vf sum = zero();
    for (int v = 0; v < kTileVectors; v += 2) {
      const float* at = s + r * kTile + v * W;
      const vf p = exp2<kDown>(load(at) * factor - b), q = exp2<kDown>(load(at + W) * factor - b);
      keep(s + r * kTile, v, p, q);
      sum = sum + p + q;
    }
    of_row[r] = sum;
  }
  store(l, fma(load(l), ratio, side_by_side(of_row, rows, hsum, hsums) * set1(1 / kSmall)));
}

template <class T>
void finish(const float* const* o, const float* weight, int64_t chunks, float sum, int64_t dim,
            void* out_) {
  T* out = static_cast<T*>(out_);
  const vf divisor = set1(sum * kSmall);
  for (int64_t d = 0; d < dim; d += W) {
    vf x = zero();
    for (int64_t i = 0; i < chunks; ++i) x = fma(load(o[i] + d), set1(weight[i]), x);
    const vf y = {x.v / divisor.v};
    d + W <= dim ? store(out + d, y) : store_n(out + d, y, static_cast<int>(dim - d));
  }
}

}  // namespace
}  // namespace pyttc
