// Queries and keys in pairs of bfloat16, as the instructions that multiply two of them at once read
// them: a pair is moved as one float.
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

}  // namespace
}  // namespace pyttc
