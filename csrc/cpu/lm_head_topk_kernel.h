// Few rows: bound by reading the weights. They are asked for one register block ahead, into the
// second level: rows are too short for the processor to foresee them. Many rows: bound by the
// multiply-adds. A register block is 4 weight rows times as many hidden rows as there are registers
// to add up in; its weight rows stay in the first level while all the hidden rows pass by. A logit
// is W partial sums over h (lane i takes every W-th element from i), added as the tree of hsum.
#pragma once
#include "lm_head_topk.h"
#include "simd.h"

namespace pyttc {
namespace {

// foldN(a, b): the lanes of a, N apart, added in pairs, then those of b.
#if defined(__AVX512F__)
constexpr int kHiddenRows = 6;
inline vf fold8(vf a, vf b) {
  return {
      _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee))};
}
inline vf fold4(vf a, vf b) {
  return {
      _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x88), _mm512_shuffle_f32x4(a.v, b.v, 0xdd))};
}
inline vf fold2(vf a, vf b) {
  return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x44), _mm512_shuffle_ps(a.v, b.v, 0xee))};
}
inline vf fold1(vf a, vf b) {
  return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x88), _mm512_shuffle_ps(a.v, b.v, 0xdd))};
}
inline vf to_quads(const vf* a) { return fold4(fold8(a[0], a[4]), fold8(a[8], a[12])); }
#elif defined(__AVX2__)
constexpr int kHiddenRows = 3;
inline vf fold4(vf a, vf b) {
  return {_mm256_add_ps(_mm256_permute2f128_ps(a.v, b.v, 0x20),
                        _mm256_permute2f128_ps(a.v, b.v, 0x31))};
}
inline vf fold2(vf a, vf b) {
  return {_mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, 0x44), _mm256_shuffle_ps(a.v, b.v, 0xee))};
}
inline vf fold1(vf a, vf b) {
  return {_mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, 0x88), _mm256_shuffle_ps(a.v, b.v, 0xdd))};
}
inline vf to_quads(const vf* a) { return fold4(a[0], a[4]); }
#else
constexpr int kHiddenRows = 2;
inline vf fold2(vf a, vf b) {
  return {v4{a.v[0], a.v[1], b.v[0], b.v[1]} + v4{a.v[2], a.v[3], b.v[2], b.v[3]}};
}
inline vf fold1(vf a, vf b) {
  return {v4{a.v[0], a.v[2], b.v[0], b.v[2]} + v4{a.v[1], a.v[3], b.v[1], b.v[3]}};
}
inline vf to_quads(const vf* a) { return a[0]; }
#endif

// The hsum of each of W vectors.
inline vf hsums(const vf* a) {
  return fold1(fold2(to_quads(a), to_quads(a + 1)), fold2(to_quads(a + 2), to_quads(a + 3)));
}

inline int64_t padded(int64_t h) { return (h + W - 1) / W * W; }

int64_t packed_bytes(int64_t rows, int64_t h) { return rows * padded(h) * 4; }

// float32, each row filled with zeros to whole vectors.
template <class T>
void pack(const void* hidden, int64_t stride, int64_t rows, int64_t h, void* packed) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = static_cast<const T*>(hidden) + r * stride;
    float* to = static_cast<float*>(packed) + r * padded(h);
    int64_t i = 0;
    for (; i + W <= h; i += W) store(to + i, load(x + i));
    if (i < h) store(to + i, load_n(x + i, static_cast<int>(h - i)));
  }
}

struct Hidden {
  const float* x;
  int64_t h;
};

// V weight rows times R hidden rows. Rows past `count` are computed as the last one; `first` is the
// first block to see these weights, which asks for the next.
template <class T, int V, int R>
inline void block(const T* weight, int64_t stride, int count, Hidden hidden, float* out,
                  bool first) {
  const T* w[V];
  for (int v = 0; v < V; ++v) w[v] = weight + (v < count ? v : count - 1) * stride;
  vf sum[(V * R + W - 1) / W * W] =
      {};  // the 4 weight rows of a group and hidden row lie side by side
  const int64_t ahead = V * stride;
  int64_t i = 0;
  const auto step = [&](auto load_weight) {
    vf x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = load(hidden.x + r * padded(hidden.h) + i);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const vf a = load_weight(w[v] + i);
      if (first) __builtin_prefetch(w[v] + ahead + i, 0, 2);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        vf& s = sum[(v / 4 * R + r) * 4 + v % 4];
        s = fma(a, x[r], s);
      }
    }
  };
  for (; i + W <= hidden.h; i += W) step([](const T* p) { return load(p); });
  const int rest = static_cast<int>(hidden.h - i);
  if (rest) step([=](const T* p) { return load_n(p, rest); });

  constexpr int kQuads = V / 4 * R;
  for (int first_quad = 0; first_quad < kQuads; first_quad += W / 4) {
    float lane[W];
    store(lane, hsums(sum + first_quad * 4));
    for (int q = 0; q < W / 4 && first_quad + q < kQuads; ++q) {
      const int quad = first_quad + q;
      __builtin_memcpy(out + quad % R * kHeadBlock + quad / R * 4, lane + q * 4, 16);
    }
  }
}

// The last rows, fewer than a register block takes.
template <class T, int R>
inline void last_rows(const T* w, int64_t stride, int count, Hidden hidden, int64_t rows,
                      float* out, bool first) {
  if constexpr (R > 0) {
    if (rows == R) return block<T, 4, R>(w, stride, count, hidden, out, first);
    last_rows<T, R - 1>(w, stride, count, hidden, rows, out, first);
  }
}

template <class T>
void logits(const void* weight, int64_t stride, int count, const void* packed, int64_t rows,
            int64_t h, float* out) {
  const T* w = static_cast<const T*>(weight);
  const float* x = static_cast<const float*>(packed);
  if (rows == 1) {  // twice the weight rows, so that the sums do not wait for each other
    for (int v = 0; v < count; v += 8)
      block<T, 8, 1>(w + v * stride, stride, count - v, {x, h}, out + v, true);
    return;
  }
  for (int v = 0; v < count; v += 4) {
    const auto at = [&](int64_t r) { return Hidden{x + r * padded(h), h}; };
    int64_t r = 0;
    for (; r + kHiddenRows <= rows; r += kHiddenRows)
      block<T, 4, kHiddenRows>(w + v * stride, stride, count - v, at(r), out + r * kHeadBlock + v,
                               r == 0);
    last_rows<T, kHiddenRows - 1>(w + v * stride, stride, count - v, at(r), rows - r,
                                  out + r * kHeadBlock + v, r == 0);
  }
}

template <class T>
constexpr LmHead lm_head() {
  return {packed_bytes, pack<T>, logits<T>};
}

}  // namespace

extern const LmHeads PYTTC_ISA(lm_heads) = {lm_head<float>(), lm_head<bf16>(), lm_head<f16>()};

}  // namespace pyttc
