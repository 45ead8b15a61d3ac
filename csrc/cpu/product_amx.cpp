// bfloat16 on tiles: 16 weight rows (A, read where they lie) times 16 hidden rows (B, packed once a
// call) over 32 elements of h an instruction. A logit is the sum of those products in order of h,
// whatever the number of rows: unused columns cost tile time, which a call of few rows, bound by
// memory, has to spare.
#include <immintrin.h>

#include "amx.h"
#include "product_finish.h"

namespace pyttc {
namespace {

constexpr int kDepth = 32;                         // elements of h a tile holds
constexpr int kTileSize = kTileRows * kTileBytes;  // bytes

inline int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

int64_t packed_bytes(int64_t rows, int64_t h) {
  return tiles_of(rows, kTileRows) * tiles_of(h, kDepth) * kTileSize;
}

// [row tile][h tile][16 pairs][16 rows][2], zero where there is no row or no h.
void pack(const void* hidden, int64_t stride, int64_t rows, int64_t h, void* packed_) {
  const bf16* x = static_cast<const bf16*>(hidden);
  bf16* packed = static_cast<bf16*>(packed_);
  __builtin_memset(packed, 0, packed_bytes(rows, h));
  const int64_t row_tile = tiles_of(h, kDepth) * kTileSize / 2;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < h; ++i)
      packed[r / 16 * row_tile + i / 2 * 32 + r % 16 * 2 + i % 2] = x[r * stride + i];
}

// The tile at (first row, h) of at most 16 weight rows: in place where it is whole, else from a
// copy with zeros around, because what lies past a row is not ours to read.
template <int T>
inline void load_weights(const bf16* w, int64_t stride, int count, int64_t depth) {
  if (count >= kTileRows && depth >= kDepth) return tile_load<T>(w, stride * 2);
  alignas(64) bf16 copy[kTileRows][kDepth] = {};
  for (int v = 0; v < count && v < kTileRows; ++v)
    __builtin_memcpy(copy[v], w + v * stride, 2 * (depth < kDepth ? depth : kDepth));
  tile_load<T>(copy, kTileBytes);
}

// Tile C, [16 weight rows][16 hidden rows], to rows of out.
template <int C>
inline void store_block(float* out, int64_t rows) {
  alignas(64) float c[16][16];
  tile_store<C>(c, kTileBytes);
  for (int r = 0; r < 16 && r < rows; r += 4)
    for (int v = 0; v < 16; v += 4) {
      __m128 a = _mm_load_ps(&c[v][r]), b = _mm_load_ps(&c[v + 1][r]);
      __m128 d = _mm_load_ps(&c[v + 2][r]), e = _mm_load_ps(&c[v + 3][r]);
      _MM_TRANSPOSE4_PS(a, b, d, e);
      const __m128 column[4] = {a, b, d, e};
      for (int j = 0; j < 4 && r + j < rows; ++j)
        _mm_storeu_ps(out + (r + j) * kProductBlock + v, column[j]);
    }
}

// 32 weight rows times N tiles of hidden rows. (nothrow: for gcc an asm statement may throw, and
// its caller would need the C++ runtime to clean up.)
template <int N>
__attribute__((nothrow)) inline void tile_block(const bf16* w, int64_t stride, int count,
                                                const char* x, int64_t rows, int64_t h, float* out,
                                                bool first) {
  const int64_t row_tile = tiles_of(h, kDepth) * kTileSize;
  tile_zero<0>();
  tile_zero<1>();
  if (N == 2) tile_zero<2>(), tile_zero<3>();
  for (int64_t i = 0; i < h; i += kDepth, x += kTileSize) {
    if (first)
      for (int v = 32; v < 64; ++v) __builtin_prefetch(w + v * stride + i, 0, 2);
    load_weights<4>(w + i, stride, count, h - i);
    load_weights<5>(w + 16 * stride + i, stride, count - 16, h - i);
    tile_load<6>(x, kTileBytes);
    tile_dot<0, 4, 6>();
    tile_dot<1, 5, 6>();
    if (N == 2) {
      tile_load<7>(x + row_tile, kTileBytes);
      tile_dot<2, 4, 7>();
      tile_dot<3, 5, 7>();
    }
  }
  store_block<0>(out, rows);
  store_block<1>(out + 16, rows);
  if (N == 2) {
    store_block<2>(out + 16 * kProductBlock, rows - 16);
    store_block<3>(out + 16 * kProductBlock + 16, rows - 16);
  }
}

void block(const void* weight, int64_t stride, int count, const void* packed, int64_t rows,
           int64_t h, float* out) {
  const Tiles tiles;
  const bf16* w = static_cast<const bf16*>(weight);
  const int64_t row_tile = tiles_of(h, kDepth) * kTileSize;
  for (int v = 0; v < count; v += 32)
    for (int64_t r = 0; r < rows; r += 32) {
      const char* x = static_cast<const char*>(packed) + r / 16 * row_tile;
      const bf16* rows_of_w = w + v * stride;
      float* to = out + r * kProductBlock + v;
      if (rows - r > kTileRows)
        tile_block<2>(rows_of_w, stride, count - v, x, rows - r, h, to, r == 0);
      else
        tile_block<1>(rows_of_w, stride, count - v, x, rows - r, h, to, r == 0);
    }
}

}  // namespace

extern const ProductKernel product_bf16_amx = {packed_bytes, pack, block, finish<bf16>};

}  // namespace pyttc
