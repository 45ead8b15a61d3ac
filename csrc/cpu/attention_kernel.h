// Bound by the multiply-adds where many rows share a tile, by memory where few do. A tile's keys
// are turned once so that lanes are tokens (K^T [dim][kTile]) and its values widened once so that
// lanes are dims (V [kTile][padded]), for few rows each time they are read; where bfloat16 has
// instructions of its own, both are kept in pairs instead (attention_pairs.h). Then both products
// are the same register block of kRows rows by kVectors vectors, in which every element is one
// chain of multiply-adds in order, whatever rows stand beside it. Rows go through a tile kBlock at
// a time so that scores stay in the first-level cache.
#pragma once
#include "attention_softmax.h"
#if defined(__AVX512BF16__)
#include "attention_pairs.h"
#endif

namespace pyttc {
namespace {

constexpr int kRows = 6;
constexpr int kVectors = W == 16 ? 4 : 2;
// A score is the sum of runs of this many products: one long chain would round worse than torch's
// does.
constexpr int64_t kRun = 16;
// Values are multiplied so many steps at a time, between which the next tile is asked for.
constexpr int kSteps = 8;

template <class T>
void query(const void* q_, int64_t dim, float* row) {
  const T* q = static_cast<const T*>(q_);
  for (int64_t d = 0; d < dim; d += W)
    store(row + d, d + W <= dim ? load(q + d) : load_n(q + d, static_cast<int>(dim - d)));
}

// K^T [dim][kTile]
template <class T>
void pack_keys(const TileRows& tile, int64_t dim, float* kt, Prefetch& prefetch) {
  const int64_t whole = dim / W * W;
  for (int t = tile.begin / W * W; t < tile.end; t += W) {
    prefetch();
    const T* row[W];
    for (int i = 0; i < W; ++i) row[i] = static_cast<const T*>(tile.k[t + i]);
    vf x[W];
    int64_t d = 0;
    for (; d < whole; d += W) {
      for (int i = 0; i < W; ++i) x[i] = load(row[i] + d);
      transpose(x);
      for (int i = 0; i < W; ++i) store(kt + (d + i) * kTile + t, x[i]);
    }
    const int rest = static_cast<int>(dim - d);
    if (!rest) continue;
    for (int i = 0; i < W; ++i) x[i] = load_n(row[i] + d, rest);
    transpose(x);
    for (int i = 0; i < rest; ++i) store(kt + (d + i) * kTile + t, x[i]);
  }
}

// V [kTile][padded]
template <class T>
void pack_values(const TileRows& tile, int64_t dim, int64_t padded, float* vp) {
  const int64_t whole = dim / W * W;
  for (int t = tile.begin; t < tile.end; ++t) {
    const T* row = static_cast<const T*>(tile.v[t]);
    float* to = vp + t * padded;
    for (int64_t d = 0; d < whole; d += W) store(to + d, load(row + d));
    if (whole < dim) store(to + whole, load_n(row + whole, static_cast<int>(dim - whole)));
  }
}

// How the two products go on: in float32, an element at a time. Scores take half a block's width,
// where that leaves registers for the sums of runs; but few rows wait for each other's products.
struct Elements {
  static constexpr int kStep = 1;
  static constexpr int vectors(int64_t rows) {
    return W == 16 && rows > kRows / 2 ? kVectors / 2 : kVectors;
  }
  static vf multiply_add(vf a, vf b, vf sum) { return fma(a, b, sum); }
};

#if defined(__AVX512BF16__)
// In pairs of bfloat16, twice as many a cycle, and half as many runs.
struct Pairs {
  static constexpr int kStep = 2;
  static constexpr int vectors(int64_t) { return kVectors; }
  static vf multiply_add(vf a, vf b, vf sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)};
  }
};
#endif

// Their right operands: step k of vector v.
template <class By>
struct PackedRows {
  using Step = By;
  const float* at;
  int64_t stride;
  PackedRows from(int64_t d) const { return {at + d, stride}; }
  vf operator()(int64_t k, int v) const { return load(at + k * stride + v * W); }
};

template <class T>
struct ElementsInPlace {
  using Step = Elements;
  const void* const* rows;
  int64_t d;
  ElementsInPlace from(int64_t d) const { return {rows, d}; }
  vf operator()(int64_t k, int v) const { return load(static_cast<const T*>(rows[k]) + d + v * W); }
};

#if defined(__AVX512BF16__)
struct PairsInPlace {
  using Step = Pairs;
  const void* const* rows;
  int64_t d;
  PairsInPlace from(int64_t d) const { return {rows, d}; }
  vf operator()(int64_t k, int v) const {
    const auto half = [&](int64_t t) {
      return _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(static_cast<const bf16*>(rows[t]) + d + v * W));
    };
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(half(2 * k)), half(2 * k + 1), 1);
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kZip), both))};
  }
};
#endif

// acc[r][v] += a[r][k] * b(k, v) for k in [k0, k1), in order. Loops over acc are unrolled by name:
// left to the compiler it would live in memory.
template <int R, int V, class B>
inline void multiply(const float* a, int64_t lda, B b, int64_t k0, int64_t k1, vf (&acc)[R][V]) {
  for (int64_t k = k0; k < k1; ++k) {
    vf x[V];
    for (int v = 0; v < V; ++v) x[v] = b(k, v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf y = set1(a[r * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = B::Step::multiply_add(y, x[v], acc[r][v]);
    }
  }
}

template <int R, int V, class F>
inline void each(vf (&acc)[R][V], F f) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = f(r, v, acc[r][v]);
}

// A block of R rows against one tile, before and after the softmax.
template <class Step, int R, int V>
void scores(const float* q, int64_t padded, const float* kt, int64_t dim, float* s,
            Prefetch& prefetch) {
  const int64_t steps = dim / Step::kStep;
  const auto run = [&](int64_t d, vf(&acc)[R][V]) {
    prefetch();
    each(acc, [](int, int, vf) { return zero(); });
    multiply(q, padded, PackedRows<Step>{kt, kTile}, d, d + kRun < steps ? d + kRun : steps, acc);
  };
  vf sum[R][V];
  run(0, sum);
  for (int64_t d = kRun; d < steps; d += kRun) {
    vf more[R][V];
    run(d, more);
    each(sum, [&](int r, int v, vf x) { return x + more[r][v]; });
  }
  each(sum, [&](int r, int v, vf x) {
    store(s + r * kTile + v * W, x);
    return x;
  });
}

template <class B, int R, int V>
void values(const float* p, B b, int begin, int end, const float* alpha, float* o, int64_t padded,
            Prefetch& prefetch) {
  vf acc[R][V];
  each(acc, [](int, int, vf) { return zero(); });
  constexpr int step = B::Step::kStep;
  const int last = (end + step - 1) / step;
  for (int k = begin / step; k < last; k += kSteps) {
    prefetch();
    multiply(p, kTile, b, k, k + kSteps < last ? k + kSteps : last, acc);
  }
  each(acc, [&](int r, int v, vf x) {
    float* at = o + r * padded + v * W;
    store(at, fma(load(at), set1(alpha[r]), x));
    return x;
  });
}

using Scores = void (*)(const float*, int64_t, const float*, int64_t, float*, Prefetch&);
template <class B>
using Values = void (*)(const float*, B, int, int, const float*, float*, int64_t, Prefetch&);

#define PYTTC_ROWS(f, B, v) {f<B, 1, v>, f<B, 2, v>, f<B, 3, v>, f<B, 4, v>, f<B, 5, v>, f<B, 6, v>}
#if defined(__AVX512F__)
#define PYTTC_BLOCKS(f, B) \
  {PYTTC_ROWS(f, B, 1), PYTTC_ROWS(f, B, 2), PYTTC_ROWS(f, B, 3), PYTTC_ROWS(f, B, 4)}
#else
#define PYTTC_BLOCKS(f, B) {PYTTC_ROWS(f, B, 1), PYTTC_ROWS(f, B, 2)}
#endif
template <class Step>
constexpr Scores kScores[kVectors][kRows] = PYTTC_BLOCKS(scores, Step);
template <class B>
constexpr Values<B> kValues[kVectors][kRows] = PYTTC_BLOCKS(values, B);
#undef PYTTC_BLOCKS
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

// o = alpha * o + weights times the values of tokens [from, a.end), for n rows from `at` on.
template <class B>
void weighted(const AttentionRows& a, const float* p, int64_t at, int n, int from,
              const float* alpha, B b, Prefetch& prefetch) {
  in_blocks(n, [&](int r, int count) {
    for (int64_t d = 0; d < a.dim; d += kVectors * W) {
      const int64_t left = (a.dim - d + W - 1) / W;
      kValues<B>[(left < kVectors ? left : kVectors) - 1][count - 1](
          p + r* kTile, b.from(d), from, a.end, alpha + r, a.o + (at + r)* a.padded + d, a.padded,
          prefetch);
    }
  });
}

// Whether so few rows read values that these are not packed.
template <class M>
inline bool in_place(int64_t rows, int64_t dim) {
  return rows <= M::kInPlace && dim % W == 0;
}

// What a dtype asks of the loop over rows.
template <class Type>
struct Plain {
  using T = Type;
  using Step = Elements;
  static constexpr int kInPlace = 2 * kRows;
  static constexpr auto query = pyttc::query<T>;
  static void pack(const TileRows& tile, int64_t rows, int64_t dim, int64_t padded, void* k_packed,
                   void* v_packed, Prefetch& prefetch) {
    pack_keys<T>(tile, dim, static_cast<float*>(k_packed), prefetch);
    if (!in_place<Plain>(rows, dim))
      pack_values<T>(tile, dim, padded, static_cast<float*>(v_packed));
  }
  static void keep(float* row, int v, vf a, vf b) {
    store(row + v * W, a), store(row + v * W + W, b);
  }
  template <class F>
  static void with_values(const AttentionRows& a, int, F f) {
    if (in_place<Plain>(a.rows, a.dim))
      f(ElementsInPlace<T>{a.tile->v, 0});
    else
      f(PackedRows<Elements>{static_cast<const float*>(a.v), a.padded});
  }
};

#if defined(__AVX512BF16__)
struct Paired {
  using T = bf16;
  using Step = Pairs;
  static constexpr int kInPlace = 6 * kRows;
  static constexpr auto query = query_pairs;
  static void pack(const TileRows& tile, int64_t rows, int64_t dim, int64_t padded, void* k_packed,
                   void* v_packed, Prefetch& prefetch) {
    pack_keys(tile, dim, static_cast<float*>(k_packed), prefetch);
    if (!in_place<Paired>(rows, dim))
      pack_values(tile, 2, dim, padded, static_cast<float*>(v_packed));
  }
  static constexpr auto keep = keep_pairs;
  // A token that is no row's to see, but in a pair with one that is, is read as zeros.
  template <class F>
  static void with_values(const AttentionRows& a, int from, F f) {
    if (!in_place<Paired>(a.rows, a.dim)) {
      float copy[kTile / 2 * 256];
      const float* packed = static_cast<const float*>(a.v);
      if ((from & 1) && from > a.begin)
        packed = zeroed_before(from, packed, from - 1, a.end + (a.end & 1), a.padded, copy);
      f(PackedRows<Pairs>{packed, a.padded});
    } else if ((from | a.end) & 1) {
      static const bf16 zeros[256] = {};
      const void* rows[kTile];
      __builtin_memcpy(rows, a.tile->v, sizeof rows);
      if (from & 1) rows[from - 1] = zeros;
      if (a.end & 1) rows[a.end] = zeros;
      f(PairsInPlace{rows, 0});
    } else {
      f(PairsInPlace{a.tile->v, 0});
    }
  }
};
#endif

template <class M>
void rows(const AttentionRows& a, Prefetch& prefetch) {
  using Step = typename M::Step;
  alignas(64) float s[kBlock * kTile];
  float alpha[kBlock + W];
  const float* kt = static_cast<const float*>(a.k);
  const int vectors = (a.end + W - 1) / W;
  for (int64_t at = 0; at < a.rows; at += kBlock) {
    const int n = static_cast<int>(a.rows - at < kBlock ? a.rows - at : kBlock);
    const float* q = a.q + at * a.padded;
    const int* first = a.first ? a.first + at : nullptr;
    in_blocks(n, [&](int r, int count) {
      const int most = Step::vectors(count);
      for (int v = 0; v < vectors; v += most) {
        const int width = vectors - v < most ? vectors - v : most;
        kScores<Step>[width - 1][count - 1](q + r* a.padded, a.padded, kt + v* W, a.dim,
                                            s + r* kTile + v* W, prefetch);
      }
    });
    for (int r = 0; r < n; r += W)
      softmax(s + r * kTile, n - r < W ? n - r : W, a, first ? first + r : nullptr, a.m + at + r,
              a.l + at + r, alpha + r, M::keep);
    // Rows whose windows begin at one token go together: a value none of them sees is not read.
    for (int r = 0, next; r < n; r = next) {
      const int from = first ? first[r] : a.begin;
      for (next = first ? r + 1 : n; next < n && first[next] == from;) ++next;
      if (from < a.end)
        M::with_values(a, from, [&](auto values) {
          weighted(a, s + r * kTile, at + r, next - r, from, alpha + r, values, prefetch);
        });
    }
  }
}

// How often packing and the products of so many rows prefetch.
template <class M>
int64_t prefetches(int64_t rows, int64_t dim) {
  constexpr int64_t kStep = M::Step::kStep;
  const int64_t runs = (dim / kStep + kRun - 1) / kRun,
                widths = (dim + kVectors * W - 1) / (kVectors * W);
  return kTile / W +
         (rows + kRows - 1) / kRows *
             (runs * (kTileVectors / M::Step::vectors(rows)) + kTile / kStep / kSteps * widths);
}

template <class M>
constexpr AttentionKernels kernels = {M::query, M::pack, rows<M>, finish<typename M::T>,
                                      prefetches<M>};

}  // namespace

#if defined(__AVX512BF16__)
extern const AttentionKernels attention_avx512bf16 = kernels<Paired>;
#else
extern const AttentionTable PYTTC_ISA(attention) = {kernels<Plain<float> >, kernels<Plain<bf16> >,
                                                    kernels<Plain<f16> >};
#endif

}  // namespace pyttc
