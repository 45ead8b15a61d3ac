// AMX: eight tile registers of 16 rows of 64 bytes, and one instruction that multiplies two of
// them. In the layout used here a tile is 16 x 16 float32 (C), 16 rows of 32 bfloat16 (A), or 16
// rows of 16 pairs of bfloat16 (B: row k holds elements 2k and 2k+1 of each of 16 columns); C += A
// * B.
//
//   Tiles tiles;                        // configures the registers of this thread, releases them
//   at the end tile_zero<0>();                     // which register is a template argument: it is
//   part of the opcode tile_load<6>(a, stride_in_bytes); tile_load<7>(b, stride_in_bytes);
//   tile_dot<0, 6, 7>();
//   tile_store<0>(c, stride_in_bytes);
//
// -DPYTTC_EMULATE_AMX replaces the instructions by C++ that follows Intel's description of them
// step by step, so that a kernel runs, slowly, where there is no AMX.
#pragma once
#include <cstdint>

#include "float16.h"

namespace pyttc {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;

#if defined(PYTTC_EMULATE_AMX)

alignas(64) thread_local unsigned char tile_register[8][kTileRows][kTileBytes];

struct Tiles {
  Tiles() { __builtin_memset(tile_register, 0xff, sizeof tile_register); }  // NaN until loaded
  Tiles(const Tiles&) = delete;
};

template <int T>
inline void tile_zero() {
  __builtin_memset(tile_register[T], 0, sizeof tile_register[T]);
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i)
    __builtin_memcpy(tile_register[T][i], static_cast<const char*>(from) + i * stride, kTileBytes);
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i)
    __builtin_memcpy(static_cast<char*>(to) + i * stride, tile_register[T][i], kTileBytes);
}

inline float flush_subnormal(float x) { return __builtin_fabsf(x) < 0x1p-126f ? x * 0.f : x; }

// TDPBF16PS: the even and the odd products are each summed by fused multiply-adds in order of k,
// from zero, then added to each other and to C. Every operand and result is flushed, rounding is to
// nearest even.
template <int C, int A, int B>
inline void tile_dot() {
  for (int m = 0; m < kTileRows; ++m) {
    bf16 a[32];
    float c[16], even[16] = {}, odd[16] = {};
    __builtin_memcpy(a, tile_register[A][m], kTileBytes);
    __builtin_memcpy(c, tile_register[C][m], kTileBytes);
    for (int k = 0; k < 16; ++k) {
      bf16 b[32];
      __builtin_memcpy(b, tile_register[B][k], kTileBytes);
      const float a0 = flush_subnormal(to_float(a[2 * k]));
      const float a1 = flush_subnormal(to_float(a[2 * k + 1]));
      for (int n = 0; n < 16; ++n) {
        const float b0 = flush_subnormal(to_float(b[2 * n]));
        const float b1 = flush_subnormal(to_float(b[2 * n + 1]));
        even[n] = flush_subnormal(__builtin_fmaf(a0, b0, even[n]));
        odd[n] = flush_subnormal(__builtin_fmaf(a1, b1, odd[n]));
      }
    }
    for (int n = 0; n < 16; ++n)
      c[n] = flush_subnormal(flush_subnormal(c[n]) + flush_subnormal(even[n] + odd[n]));
    __builtin_memcpy(tile_register[C][m], c, kTileBytes);
  }
}

#else

// Instructions by name: the compilers' intrinsics are macros that cannot take a template argument,
// and gcc 12's do not tell the compiler what memory they read.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
const TileConfig kTileConfig = {
    1,
    0,
    {},
    {kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes,
     kTileBytes},
    {kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows}};

struct Tiles {
  Tiles() { __asm__ volatile("ldtilecfg %0" ::"m"(kTileConfig)); }
  ~Tiles() { __asm__ volatile("tilerelease" ::: "memory"); }
  Tiles(const Tiles&) = delete;
};

template <int T>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
}
template <int C, int A, int B>
inline void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace pyttc
