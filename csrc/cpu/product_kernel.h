// Up to 3 rows: bound by reading the weights, one weight row after the other as they lie, which the
// processor's own prefetcher follows; it does not follow several rows at once. More rows: bound by
// the multiply-adds. A register block is 4 weight rows times as many rows as there are registers to
// add up in; its weight rows stay in the first level while all the rows pass by, and the next ones
// are prefetched into the second, in the order in which they lie. An element is W partial sums over
// h (lane i takes every W-th from i on), added as the tree of hsum.
#pragma once
#include "fold.h"
#include "product.h"
#include "product_finish.h"

namespace pyttc {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 4;
#elif defined(__AVX2__)
constexpr int kRows = 3;
#else
constexpr int kRows = 2;
#endif
constexpr int kFew = 3;              // rows that take one weight row at a time
constexpr int64_t kNear = 24 << 10;  // bytes of the first level to fill

// What is multiplied: rows are packed as `Packed`, and a vector of them meets a vector of weights
// `T`.
template <class Weight>
struct Floats {
  using T = Weight;
  using Packed = float;
  using Vector = vf;
  static constexpr int kStep = W;  // elements of h
  static vf load(const float* p) { return pyttc::load(p); }
  static vf weights(const T* p) { return pyttc::load(p); }
  static vf weights(const T* p, int n) { return load_n(p, n); }
  static vf multiply_add(vf sum, vf w, vf x) { return fma(w, x, sum); }
  static void pack(const T* x, int n, float* to) {
    pyttc::store(to, n == W ? pyttc::load(x) : load_n(x, n));
  }
};

#if defined(__AVX512BF16__)
// Lane i takes elements 2i and 2i + 1 of every 32.
struct Pairs {
  using T = bf16;
  using Packed = bf16;
  using Vector = __m512bh;
  static constexpr int kStep = 2 * W;
  static Vector load(const bf16* p) {
    Vector x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static Vector weights(const bf16* p) { return load(p); }
  static Vector weights(const bf16* p, int n) {
    bf16 lane[kStep] = {};
    __builtin_memcpy(lane, p, n * sizeof(bf16));
    return load(lane);
  }
  static vf multiply_add(vf sum, Vector w, Vector x) { return {_mm512_dpbf16_ps(sum.v, w, x)}; }
  static void pack(const bf16* x, int n, bf16* to) {
    for (int i = n; i < kStep; ++i) to[i] = bf16{};
    __builtin_memcpy(to, x, n * sizeof(bf16));
  }
};
#endif

template <class M>
inline int64_t padded(int64_t h) {
  return (h + M::kStep - 1) / M::kStep * M::kStep;
}

template <class M>
int64_t packed_bytes(int64_t rows, int64_t h) {
  return rows * padded<M>(h) * int64_t{sizeof(typename M::Packed)};
}

// Each row filled with zeros to whole vectors.
template <class M>
void pack(const void* rows, int64_t stride, int64_t n, int64_t h, void* packed) {
  for (int64_t r = 0; r < n; ++r) {
    const auto* x = static_cast<const typename M::T*>(rows) + r * stride;
    auto* to = static_cast<typename M::Packed*>(packed) + r * padded<M>(h);
    for (int64_t i = 0; i < h; i += M::kStep)
      M::pack(x + i, static_cast<int>(h - i < M::kStep ? h - i : M::kStep), to + i);
  }
}

template <class M>
struct Rows {
  const typename M::Packed* x;
  int64_t h;
};

// The vectors of a register block added up, those of a row and 4 weight rows side by side: quad q
// is row q % R and the weight rows from q / R * 4 on.
template <int R, int N>
inline void add_up(const vf (&sum)[N], int quads, float* out) {
  for (int first = 0; first < quads; first += W / 4) {
    float lane[W];
    store(lane, hsums(sum + first * 4));
    for (int quad = first; quad < quads && quad < first + W / 4; ++quad)
      __builtin_memcpy(out + quad % R * kProductBlock + quad / R * 4, lane + (quad - first) * 4,
                       16);
  }
}

// The weights that are used next, as they lie if no gaps are between their rows; every kAhead steps
// over h fetch so many lines of them.
struct Prefetch {
  const char* next;
  int lines;
};
constexpr int kAhead = 4;

// 4 weight rows times R rows. Weight rows past `count` are computed as the last one. Inlined: a
// call saves and clears vector registers, a tenth of the time at 768 elements.
template <class M, int R>
[[gnu::always_inline]] inline void register_block(const typename M::T* weight, int64_t stride,
                                                  int count, Rows<M> rows, float* out,
                                                  Prefetch& prefetch) {
  const typename M::T* w[4];
  for (int v = 0; v < 4; ++v) w[v] = weight + (v < count ? v : count - 1) * stride;
  vf sum[(4 * R + W - 1) / W * W] = {};
  const char* next = prefetch.next;
  const int lines = prefetch.lines;
  int64_t i = 0;
  const auto step = [&](auto... rest) {
    typename M::Vector x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = M::load(rows.x + r * padded<M>(rows.h) + i);
    if (i % (kAhead * M::kStep) == 0)
      for (const char* end = next + lines * 64; next != end; next += 64)
        __builtin_prefetch(next, 0, 2);
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) {
      const typename M::Vector a = M::weights(w[v] + i, rest...);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r * 4 + v] = M::multiply_add(sum[r * 4 + v], a, x[r]);
    }
  };
  for (; i + M::kStep <= rows.h; i += M::kStep) step();
  if (i < rows.h) step(static_cast<int>(rows.h - i));
  prefetch.next = next;

  add_up<R>(sum, R, out);
}

// At most R rows with the weight rows of a group.
template <class M, int R>
inline void some_rows(const typename M::T* w, int64_t stride, int from, int to, int count,
                      Rows<M> rows, int64_t n, float* out, Prefetch& prefetch) {
  if constexpr (R > 1)
    if (n < R) return some_rows<M, R - 1>(w, stride, from, to, count, rows, n, out, prefetch);
  for (int v = from; v < to; v += 4)
    register_block<M, R>(w + v * stride, stride, count - v, rows, out + v, prefetch);
}

// At most R rows with one weight row at a time. The sums of several are added up together.
template <class M, int R>
void few_rows(const typename M::T* weight, int64_t stride, int count, Rows<M> rows, int64_t n,
              float* out) {
  if constexpr (R > 1)
    if (n < R) return few_rows<M, R - 1>(weight, stride, count, rows, n, out);
  constexpr int V = 16 / R / 4 * 4;
  vf sum[(V * R + W - 1) / W * W] = {};
  for (int v = 0; v < count; v += V) {
    for (int at = v; at < v + V && at < count; ++at) {
      const typename M::T* w = weight + at * stride;
      vf s[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) s[r] = zero();
      int64_t i = 0;
      const auto step = [&](auto... rest) {
        const typename M::Vector a = M::weights(w + i, rest...);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          s[r] = M::multiply_add(s[r], a, M::load(rows.x + r * padded<M>(rows.h) + i));
      };
      for (; i + M::kStep <= rows.h; i += M::kStep) step();
      if (i < rows.h) step(static_cast<int>(rows.h - i));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[((at - v) / 4 * R + r) * 4 + (at - v) % 4] = s[r];
    }
    add_up<R>(sum, V / 4 * R, out + v);
  }
}

template <class M>
void block(const void* weight, int64_t stride, int count, const void* packed, int64_t n, int64_t h,
           float* out) {
  const auto* w = static_cast<const typename M::T*>(weight);
  const auto* x = static_cast<const typename M::Packed*>(packed);
  if (n <= kFew) return few_rows<M, kFew>(w, stride, count, {x, h}, n, out);
  // As many weight rows as stay in the first level with a register block's rows.
  const int64_t fit = kNear / (padded<M>(h) * int64_t{sizeof(typename M::Packed)}) - kRows;
  const int group = static_cast<int>(fit < 4 ? 4 : fit / 4 * 4);
  const int blocks = static_cast<int>((n + kRows - 1) / kRows);  // that use the same weights
  // Lines of the weights that a register block reads in kAhead steps.
  constexpr int kLines = 4 * kAhead * M::kStep * int{sizeof(typename M::T)} / 64;
  Prefetch prefetch{reinterpret_cast<const char*>(w + group * stride),
                    (kLines + blocks - 1) / blocks};
  for (int from = 0; from < count; from += group) {
    const int to = from + group < count ? from + group : count;
    for (int64_t r = 0; r < n; r += kRows)
      some_rows<M, kRows>(w, stride, from, to, count, {x + r * padded<M>(h), h}, n - r,
                          out + r * kProductBlock, prefetch);
  }
}

template <class M>
constexpr ProductKernel product() {
  return {packed_bytes<M>, pack<M>, block<M>, finish<typename M::T>};
}

}  // namespace

#if defined(__AVX512BF16__)
extern const ProductKernel product_bf16_avx512bf16 = product<Pairs>();
#else
extern const ProductKernels PYTTC_ISA(product) = {
    product<Floats<float> >(), product<Floats<bf16> >(), product<Floats<f16> >()};
#endif

}  // namespace pyttc
