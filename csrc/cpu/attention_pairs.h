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

// [dim / 2][kTile][2]
void pack_keys(const TileRows& tile, int64_t dim, float* packed, Prefetch& prefetch) {
  for (int t = tile.begin / W * W; t < tile.end; t += W) {
    prefetch();
    for (int64_t d = 0; d < dim; d += kPair) {
      vf x[W];
      for (int i = 0; i < W; ++i) x[i] = {_mm512_castsi512_ps(row_of(tile.k[t + i], d, dim))};
      transpose(x);
      for (int i = 0; i < W; ++i) store(packed + (d / 2 + i) * kTile + t, x[i]);
    }
  }
}

// Lanes 0 and 16, 1 and 17, ... side by side: 16 values of two tokens, one token in each half.
alignas(64) constexpr uint16_t kZip[] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                         21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                         11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

// [kTile / 2][padded][2], whole groups of `group` tokens; zeros for tokens that are not there.
void pack_values(const TileRows& tile, int group, int64_t dim, int64_t padded, float* packed) {
  const __m512i zip = _mm512_load_si512(kZip);
  for (int64_t d = 0; d < padded; d += W) {
    const __mmask16 dims = dim - d >= W ? 0xffff : 0xff;
    const auto pair = [&](int t, __mmask16 first, __mmask16 second) {
      const __m256i a = _mm256_maskz_loadu_epi16(first, static_cast<const bf16*>(tile.v[t]) + d);
      const __m256i b =
          _mm256_maskz_loadu_epi16(second, static_cast<const bf16*>(tile.v[t + 1]) + d);
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
      _mm512_storeu_si512(packed + t / 2 * padded + d, _mm512_permutexvar_epi16(zip, both));
    };
    int t = tile.begin / group * group;
    for (; t + 1 < tile.begin; t += 2) pair(t, 0, 0);
    if (t < tile.begin) pair(t, 0, dims), t += 2;
    for (; t + 1 < tile.end; t += 2) pair(t, dims, dims);
    if (t < tile.end) pair(t, dims, 0), t += 2;
    for (; t % group; t += 2) pair(t, 0, 0);
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
