#define PYTTC_ISA_AMX
#include "amx.h"
#include "attention_pairs.h"

// bfloat16 on tiles, so fast that the exponentials are what bounds it. Queries are the left operand
// as they are, 16 rows a tile; keys are turned to pairs of dims [dim / 2][kTile][2], values to
// pairs of tokens [kTile / 2][padded][2].
namespace pyttc {
namespace {

void pack(const TileRows& tile, int64_t, int64_t dim, int64_t padded, void* k_packed,
          void* v_packed, Prefetch& prefetch) {
  pack_keys(tile, dim, static_cast<float*>(k_packed), prefetch);
  pack_values(tile, kPair, dim, padded, static_cast<float*>(v_packed));
}

// The tiles 0 to n - 1 += the tile A times n tiles of 16 columns, side by side.
template <int A>
inline void dot_columns(const float* b, int64_t pitch, int n) {
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

// o = alpha * o + p times the values of tokens [from, end), for at most 16 rows.
void values(const AttentionRows& a, const float* p, int from, const float* alpha, int rows,
            float* o) {
  const float* v = static_cast<const float*>(a.v);
  const int first = from / kPair * kPair;
  float copy[kTile / 2 * 256];
  if (from > first && from > a.begin)
    v = zeroed_before(from, v, first, (a.end + kPair - 1) / kPair * kPair, a.padded, copy);
  alignas(64) float sum[16 * kTile];
  for (int64_t d = 0; d < a.padded; d += kTile) {
    const int columns = static_cast<int>(a.padded - d < kTile ? a.padded - d : kTile) / 16;
    zero_columns();
    for (int t = first; t < a.end; t += kPair) {
      tile_load<4>(p + t / 2, kTile * 4);
      dot_columns<4>(v + t / 2 * a.padded + d, a.padded, columns);
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
__attribute__((nothrow)) void rows_on_tiles(const AttentionRows& a, Prefetch& prefetch) {
  alignas(64) float s[(kBlock + 16) * kTile];  // a block of 16 rows may begin at any
  float alpha[kBlock + W];
  const float* kt = static_cast<const float*>(a.k);
  for (int64_t at = 0; at < a.rows; at += kBlock) {
    const int n = static_cast<int>(a.rows - at < kBlock ? a.rows - at : kBlock);
    for (int r = 0; r < n; r += 16) {
      prefetch();
      const int columns = (a.end + 15) / 16, count = n - r < 16 ? n - r : 16;
      zero_columns();
      for (int64_t d = 0; d < a.dim; d += kPair) {
        tile_load<4>(a.q + (at + r) * a.padded + d / 2, a.padded * 4);
        dot_columns<4>(kt + d / 2 * kTile, kTile, columns);
      }
      store_columns(s + r * kTile, columns);
      softmax(s + r * kTile, count, a, a.first ? a.first + at + r : nullptr, a.m + at + r,
              a.l + at + r, alpha + r, keep_pairs);
    }
    for (int r = 0; r < n;) {
      prefetch();
      int next = n < r + 16 ? n : r + 16;
      const int from = a.first ? a.first[at + r] : a.begin;
      if (a.first)
        for (int i = r + 1; i < next; ++i)
          if (a.first[at + i] != from) next = i;
      if (from < a.end)
        values(a, s + r * kTile, from, alpha + r, next - r, a.o + (at + r) * a.padded);
      r = next;
    }
  }
}

void rows(const AttentionRows& a, Prefetch& prefetch) {
  const Tiles tiles;
  rows_on_tiles(a, prefetch);
}

int64_t prefetches(int64_t rows, int64_t) { return kTile / W + 2 * ((rows + 15) / 16); }

}  // namespace

extern const AttentionKernels attention_amx = {query_pairs, pack, rows, finish<bf16>, prefetches};

}  // namespace pyttc
