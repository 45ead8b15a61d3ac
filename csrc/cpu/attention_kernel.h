// Bound by the multiply-adds where many rows share a tile, by memory where few do. A tile's keys
// are turned once so that lanes are tokens (K^T [dim][kTile]) and its values widened once so that
// lanes are dims (V [kTile][padded]); then both products are the same register block of kRows rows
// by kVectors vectors, in which every element is one chain of multiply-adds in order, whatever rows
// stand beside it. Rows go through a tile kBlock at a time so that scores stay in the first-level
// cache.
#pragma once
#include "attention.h"
#include "simd.h"

namespace pyttc {
namespace {

constexpr int kRows = 6;
constexpr int kVectors = W == 16 ? 4 : 2;
constexpr int kBlock = 48;
constexpr int kTileVectors = kTile / W;

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

template <class T>
void query(const void* q_, int64_t dim, float scale, float* row) {
  const T* q = static_cast<const T*>(q_);
  const vf s = set1(scale);
  for (int64_t d = 0; d < dim; d += W)
    store(row + d, s * (d + W <= dim ? load(q + d) : load_n(q + d, static_cast<int>(dim - d))));
}

template <class T>
void pack(const void* const* k, const void* const* v, int begin, int end, int64_t dim,
          int64_t padded, void* k_packed, void* v_packed) {
  const auto piece = [&](const void* row, int64_t d) {
    const T* x = static_cast<const T*>(row) + d;
    return d + W <= dim ? load(x) : load_n(x, static_cast<int>(dim - d));
  };
  float *kt = static_cast<float*>(k_packed), *vp = static_cast<float*>(v_packed);
  for (int t = begin / W * W; t < end; t += W)
    for (int64_t d = 0; d < dim; d += W) {
      vf x[W];
      for (int i = 0; i < W; ++i)
        x[i] = t + i >= begin && t + i < end ? piece(k[t + i], d) : zero();
      transpose(x);
      const int columns = dim - d < W ? static_cast<int>(dim - d) : W;
      for (int i = 0; i < columns; ++i) store(kt + (d + i) * kTile + t, x[i]);
    }
  for (int t = begin; t < end; ++t)
    for (int64_t d = 0; d < dim; d += W) store(vp + t * padded + d, piece(v[t], d));
}

// acc[r][v] += a[r][k] * b[k][v] for k in [k0, k1), in order.
template <int R, int V>
inline void multiply(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t k0,
                     int64_t k1, vf (&acc)[R][V]) {
  for (int64_t k = k0; k < k1; ++k) {
    vf x[V];
    for (int v = 0; v < V; ++v) x[v] = load(b + k * ldb + v * W);
    for (int r = 0; r < R; ++r) {
      const vf y = set1(a[r * lda + k]);
      for (int v = 0; v < V; ++v) acc[r][v] = fma(y, x[v], acc[r][v]);
    }
  }
}

// A block of R rows against one tile, before and after the softmax.
template <int R, int V>
void scores(const float* q, int64_t padded, const float* kt, int64_t dim, float* s) {
  vf acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = zero();
  multiply(q, padded, kt, kTile, 0, dim, acc);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(s + r * kTile + v * W, acc[r][v]);
}

template <int R, int V>
void values(const float* p, const float* vp, int64_t padded, int begin, int end, const float* alpha,
            float* o) {
  vf acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = zero();
  multiply(p, kTile, vp, padded, begin, end, acc);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      float* at = o + r * padded + v * W;
      store(at, fma(load(at), set1(alpha[r]), acc[r][v]));
    }
}

using Scores = void (*)(const float*, int64_t, const float*, int64_t, float*);
using Values = void (*)(const float*, const float*, int64_t, int, int, const float*, float*);

#define PYTTC_ROWS(f, v) {f<1, v>, f<2, v>, f<3, v>, f<4, v>, f<5, v>, f<6, v>}
#if defined(__AVX512F__)
constexpr Scores kScores[kVectors][kRows] = {PYTTC_ROWS(scores, 1), PYTTC_ROWS(scores, 2),
                                             PYTTC_ROWS(scores, 3), PYTTC_ROWS(scores, 4)};
constexpr Values kValues[kVectors][kRows] = {PYTTC_ROWS(values, 1), PYTTC_ROWS(values, 2),
                                             PYTTC_ROWS(values, 3), PYTTC_ROWS(values, 4)};
#else
constexpr Scores kScores[kVectors][kRows] = {PYTTC_ROWS(scores, 1), PYTTC_ROWS(scores, 2)};
constexpr Values kValues[kVectors][kRows] = {PYTTC_ROWS(values, 1), PYTTC_ROWS(values, 2)};
#endif
#undef PYTTC_ROWS

// Calls f(first row, rows) over n rows in blocks of at most kRows, as even as can be.
template <class F>
inline void in_blocks(int n, F f) {
  const int blocks = (n + kRows - 1) / kRows;
  for (int i = 0, at = 0; i < blocks; ++i) {
    const int rows = n / blocks + (i < n % blocks);
    f(at, rows);
    at += rows;
  }
}

// Scores to weights for at most W rows: s becomes exp(s - m), m and l move on, alpha is what the
// sums so far are to be multiplied with. Maxima and sums of the rows are taken lane by lane after a
// transpose.
void softmax(float* s, int rows, const AttentionRows& a, const int* first, float* m, float* l,
             float* alpha) {
  vf high[W], sum[W];
  uint64_t seen[W];
  const uint64_t until = ~uint64_t{0} >> (kTile - a.end);
  for (int r = 0; r < W; ++r) {
    high[r] = set1(-kInf);
    sum[r] = zero();
    if (r >= rows) continue;
    const int from = first ? first[r] : a.begin;
    seen[r] = from < a.end ? until & ~uint64_t{0} << from : 0;
    for (int v = 0; v < kTileVectors; ++v) {
      float* at = s + r * kTile + v * W;
      vf x = load(at);
      if (a.softcap > 0.f) x = set1(a.softcap) * tanh({x.v / set1(a.softcap).v});
      if (~seen[r])
        x = select(from_bits(static_cast<unsigned>(seen[r] >> (v * W)) & ((1u << W) - 1)), x,
                   set1(-kInf));
      if (a.softcap > 0.f || ~seen[r]) store(at, x);
      high[r] = max(high[r], x);
    }
  }
  transpose(high);
  vf tile_max = high[0];
  for (int i = 1; i < W; ++i) tile_max = max(tile_max, high[i]);
  const vf old = load(m), now = max(old, tile_max);
  // Nothing seen yet has the maximum -inf, which must not be subtracted from itself.
  const vf safe = select(now > set1(-kInf), now, zero());
  const vf ratio = exp(old - safe);
  float base[W];
  store(base, safe);
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kTileVectors; ++v) {
      float* at = s + r * kTile + v * W;
      const vf p = exp(load(at) - set1(base[r]));
      store(at, p);
      sum[r] = sum[r] + p;
    }
  transpose(sum);
  vf total = sum[0];
  for (int i = 1; i < W; ++i) total = total + sum[i];
  store(m, now);
  store(l, fma(load(l), ratio, total));
  store(alpha, ratio);
}

void rows(const AttentionRows& a) {
  alignas(64) float s[kBlock * kTile];
  float alpha[kBlock + W];
  const float *kt = static_cast<const float*>(a.k), *vp = static_cast<const float*>(a.v);
  const int vectors = (a.end + W - 1) / W;
  for (int64_t at = 0; at < a.rows; at += kBlock) {
    const int n = static_cast<int>(a.rows - at < kBlock ? a.rows - at : kBlock);
    const float* q = a.q + at * a.padded;
    const int* first = a.first ? a.first + at : nullptr;
    in_blocks(n, [&](int r, int count) {
      for (int v = 0; v < vectors; v += kVectors) {
        const int width = vectors - v < kVectors ? vectors - v : kVectors;
        kScores[width - 1][count - 1](q + r * a.padded, a.padded, kt + v * W, a.dim,
                                      s + r * kTile + v * W);
      }
    });
    for (int r = 0; r < n; r += W)
      softmax(s + r * kTile, n - r < W ? n - r : W, a, first ? first + r : nullptr, a.m + at + r,
              a.l + at + r, alpha + r);
    // Rows whose windows begin at one token go together: a value no row of a block sees is not
    // read.
    for (int r = 0; r < n;) {
      int next = n, from = a.begin;
      if (first) {
        from = first[r];
        for (next = r + 1; next < n && first[next] == from;) ++next;
      }
      if (from < a.end)
        in_blocks(next - r, [&](int i, int count) {
          for (int64_t d = 0; d < a.dim; d += kVectors * W) {
            const int64_t left = (a.dim - d + W - 1) / W;
            kValues[(left < kVectors ? left : kVectors) - 1][count - 1](
                s + (r + i) * kTile, vp + d, a.padded, from, a.end, alpha + r + i,
                a.o + (at + r + i) * a.padded + d);
          }
        });
      r = next;
    }
  }
}

template <class T>
void finish(const float* const* o, const float* weight, int64_t chunks, float sum, int64_t dim,
            void* out_) {
  T* out = static_cast<T*>(out_);
  const vf divisor = set1(sum);
  for (int64_t d = 0; d < dim; d += W) {
    vf x = zero();
    for (int64_t i = 0; i < chunks; ++i) x = fma(load(o[i] + d), set1(weight[i]), x);
    const vf y = {x.v / divisor.v};
    d + W <= dim ? store(out + d, y) : store_n(out + d, y, static_cast<int>(dim - d));
  }
}

template <class T>
constexpr AttentionKernels kernels = {query<T>, pack<T>, rows, finish<T>};

}  // namespace

extern const AttentionTable PYTTC_ISA(attention) = {kernels<float>, kernels<bf16>, kernels<f16>};

}  // namespace pyttc
