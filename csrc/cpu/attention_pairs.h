// Both products in pairs of bfloat16, as the instructions that multiply two of them at once read
// them: pairs of dims of queries and keys, pairs of tokens of weights and values. A pair is moved
// as one float. A weight is rounded to bfloat16, as torch's kernels and those of GPUs do; its sum
// is not.
#pragma once
#include "attention_softmax.h"

namespace pyttc {
namespace {

constexpr int kPair = 32;  // elements along the summed dimension of one product

inline __m512i row_of(const void* row, int64_t d, int64_t dim) {  // 32 elements, zeros past dim
  const __mmask32 mask = dim - d >= kPair ? ~__mmask32{0} : (__mmask32{1} << (dim - d)) - 1;
  return _mm512_maskz_loadu_epi16(mask, static_cast<const bf16*>(row) + d);
}

// A row as it is, filled with zeros.
void query_pairs(const void* q, int64_t dim, float* row) {
  for (int64_t d = 0; d < dim; d += kPair)
    _mm512_storeu_si512(reinterpret_cast<bf16*>(row) + d, row_of(q, d, dim));
}

// [dim / 2][kTile][2]; zeros for tokens of a vector that are not there.
void pack_keys(const TileRows& tile, const TileRows& next, int64_t dim, float* packed) {
  for (int t = tile.begin / W * W; t < tile.end; t += W)
    for (int64_t d = 0; d < dim; d += kPair) {
      vf x[W];
      for (int i = 0; i < W; ++i)
        x[i] = t + i >= tile.begin && t + i < tile.end
                   ? vf{_mm512_castsi512_ps(row_of(tile.k[t + i], d, dim))}
                   : zero();
      for (int i = 0; i < W; ++i) prefetch<bf16>(next.k[t + i], d);
      transpose(x);
      for (int i = 0; i < W; ++i) store(packed + (d / 2 + i) * kTile + t, x[i]);
    }
}

// 16 values of two tokens, side by side.
inline __m512i zip(__m256i a, __m256i b) {
  const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16);
  return _mm512_or_si512(_mm512_cvtepu16_epi32(a), wide);
}

// [kTile / 2][padded][2], in groups of 32 tokens; zeros for tokens that are not there.
void pack_values(const TileRows& tile, int64_t dim, int64_t padded, float* packed) {
  for (int t = tile.begin / kPair * kPair; t < tile.end || t % kPair; t += 2)
    for (int64_t d = 0; d < dim; d += kPair) {
      const auto token = [&](int i) {
        return i >= tile.begin && i < tile.end ? row_of(tile.v[i], d, dim) : _mm512_setzero_si512();
      };
      const __m512i a = token(t), b = token(t + 1);
      float* to = packed + t / 2 * padded + d;
      _mm512_storeu_si512(to, zip(_mm512_castsi512_si256(a), _mm512_castsi512_si256(b)));
      if (d + W < padded)
        _mm512_storeu_si512(to + W,
                            zip(_mm512_extracti64x4_epi64(a, 1), _mm512_extracti64x4_epi64(b, 1)));
    }
}

// Two vectors of weights of a row as pairs, where they were.
inline void keep_pairs(float* row, int v, vf a, vf b) {
  _mm512_storeu_si512(row + v * W / 2, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}

// A copy of the packed values of tokens [begin, end), both even, in which those before `from` are
// zeroed: they are outside a window that stands in one product with them, and may hold anything.
inline const float* zeroed_before(int from, const float* packed, int begin, int end, int64_t padded,
                                  float* copy) {
  const int64_t first = begin / 2 * padded, odd = from / 2 * padded;
  __builtin_memcpy(copy + first, packed + first, (end / 2 * padded - first) * 4);
  __builtin_memset(copy + first, 0, (odd - first) * 4);
  if (from & 1)
    for (int64_t d = odd; d < odd + padded; ++d)
      reinterpret_cast<uint32_t*>(copy)[d] &= 0xffff0000u;
  return copy;
}

}  // namespace
}  // namespace pyttc
