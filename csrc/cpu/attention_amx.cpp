#define PYTTC_ISA_AMX
#include "amx.h"
#include "attention_pairs.h"

// bfloat16 on tiles, so fast that the exponentials are what bounds it. Queries are the left operand
// as they are, 16 rows a tile; keys are turned to pairs of dims [dim / 2][kTile][2], values to
// pairs of tokens [kTile / 2][padded][2]. A weight goes in as two bfloat16, its rounding and the
// rest: one alone would cost more accuracy than torch's result has to lose, two cost a seventh of
// the time.
namespace pyttc {
namespace {

void pack(const TileRows& tile, const TileRows& next, int64_t, int64_t dim, int64_t padded,
          void* k_packed, void* v_packed) {
  pack_keys(tile, next, dim, static_cast<float*>(k_packed));
  for (int t = tile.begin / kPair * kPair; t < tile.end || t % kPair; t += 2)
    for (int64_t d = 0; d < dim; d += kPair) {
      const auto token = [&](int i) {
        return i >= tile.begin && i < tile.end ? row_of(tile.v[i], d, dim) : _mm512_setzero_si512();
      };
      const __m512i a = token(t), b = token(t + 1);
      uint32_t* to = static_cast<uint32_t*>(v_packed) + t / 2 * padded + d;
      for (int half = 0; half < 2 && d + half * W < padded; ++half) {
        const __m256i x = half ? _mm512_extracti64x4_epi64(a, 1) : _mm512_castsi512_si256(a);
        const __m256i y = half ? _mm512_extracti64x4_epi64(b, 1) : _mm512_castsi512_si256(b);
        const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(y), 16);
        _mm512_storeu_si512(to + half * W, _mm512_or_si512(_mm512_cvtepu16_epi32(x), wide));
      }
    }
}

// The tiles 0 to n - 1 += the tile A times n tiles of 16 columns, side by side.
template <int A>
inline void dot_columns(const uint32_t* b, int64_t pitch, int n) {
  const int64_t stride = pitch * 4;
  tile_load<7>(b, stride), tile_dot<0, A, 7>();
  if (n > 1) tile_load<7>(b + 16, stride), tile_dot<1, A, 7>();
  if (n > 2) tile_load<7>(b + 32, stride), tile_dot<2, A, 7>();
  if (n > 3) tile_load<7>(b + 48, stride), tile_dot<3, A, 7>();
}

inline void zero_columns() { tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>(); }

inline void store_columns(float* to, int n) {
  constexpr int64_t stride = kTile * 4;
  tile_store<0>(to, stride);
  if (n > 1) tile_store<1>(to + 16, stride);
  if (n > 2) tile_store<2>(to + 32, stride);
  if (n > 3) tile_store<3>(to + 48, stride);
}

// p as the sum of two bfloat16, scaled by kSmall.
inline void split(const float* p, bf16* high, bf16* low) {
  const vf x = load(p) * set1(kSmall);
  const __m512i h = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x.v));
  const vf rest = x - vf{_mm512_castsi512_ps(_mm512_slli_epi32(h, 16))};
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi32_epi16(h));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), (__m256i)_mm512_cvtneps_pbh(rest.v));
}

// o = alpha * o + p times the values of tokens [from, end), for at most 16 rows.
void values(const AttentionRows& a, const bf16* high, const bf16* low, int from, const float* alpha,
            int rows, float* o) {
  const uint32_t* v = static_cast<const uint32_t*>(a.v);
  const int first = from / kPair * kPair;
  // A token outside these rows' window may be inside another's and hold anything: it is zeroed.
  uint32_t inside[kPair / 2 * 256];
  if (from > first && from > a.begin) {
    __builtin_memcpy(inside, v + first / 2 * a.padded, kPair / 2 * a.padded * 4);
    __builtin_memset(inside, 0, (from - first) / 2 * a.padded * 4);
    if (from & 1)
      for (int64_t d = 0; d < a.padded; ++d)
        inside[(from - first) / 2 * a.padded + d] &= 0xffff0000u;
  }
  alignas(64) float sum[16 * kTile];
  for (int64_t d = 0; d < a.padded; d += kTile) {
    const int columns = static_cast<int>(a.padded - d < kTile ? a.padded - d : kTile) / 16;
    zero_columns();
    for (int t = first; t < a.end; t += kPair) {
      const bool edge = t == first && from > first && from > a.begin;
      const uint32_t* b = (edge ? inside : v + t / 2 * a.padded) + d;
      tile_load<4>(high + t, kTile * 2);
      tile_load<5>(low + t, kTile * 2);
      dot_columns<4>(b, a.padded, columns);
      dot_columns<5>(b, a.padded, columns);
    }
    store_columns(sum, columns);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < columns * 16; i += W) {
        float* at = o + r * a.padded + d + i;
        store(at, fma(load(at), set1(alpha[r]), load(sum + r * kTile + i)));
      }
  }
}

// nothrow: with exception tables the file would hold a symbol that the linker shares with others.
__attribute__((nothrow)) void rows_on_tiles(const AttentionRows& a) {
  alignas(64) float s[kBlock * kTile];
  alignas(64) bf16 high[(kBlock + 16) * kTile], low[(kBlock + 16) * kTile];
  float alpha[kBlock + W];
  const uint32_t* kt = static_cast<const uint32_t*>(a.k);
  for (int64_t at = 0; at < a.rows; at += kBlock) {
    const int n = static_cast<int>(a.rows - at < kBlock ? a.rows - at : kBlock);
    if (at == 0) prefetch_values<bf16>(a, 0, kTile / 2);
    for (int r = 0; r < n; r += 16) {
      const int columns = (a.end + 15) / 16, count = n - r < 16 ? n - r : 16;
      zero_columns();
      for (int64_t d = 0; d < a.dim; d += kPair) {
        tile_load<4>(a.q + (at + r) * a.padded + d / 2, a.padded * 4);
        dot_columns<4>(kt + d / 2 * kTile, kTile, columns);
      }
      store_columns(s + r * kTile, columns);
      softmax(s + r * kTile, count, a, a.first ? a.first + at + r : nullptr, a.m + at + r,
              a.l + at + r, alpha + r);
      for (int i = r * kTile; i < (r + count) * kTile; i += W) split(s + i, high + i, low + i);
    }
    if (at == 0) prefetch_values<bf16>(a, kTile / 2, kTile);
    for (int r = 0; r < n;) {
      int next = n < r + 16 ? n : r + 16;
      const int from = a.first ? a.first[at + r] : a.begin;
      if (a.first)
        for (int i = r + 1; i < next; ++i)
          if (a.first[at + i] != from) next = i;
      if (from < a.end)
        values(a, high + r * kTile, low + r * kTile, from, alpha + r, next - r,
               a.o + (at + r) * a.padded);
      r = next;
    }
  }
}

void rows(const AttentionRows& a) {
  const Tiles tiles;
  rows_on_tiles(a);
}

}  // namespace

extern const AttentionKernels attention_amx = {query_pairs, pack, rows, finish<bf16>};

}  // namespace pyttc
