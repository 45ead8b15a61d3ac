// One vector of floats, `vf`, at the width of the instruction set a file is compiled for, and the
// few operations the kernels need. Everything has internal linkage and nothing is taken from std::,
// so that the linker can never hand AVX-512 code to a machine without it.
//
//   PYTTC_ISA(name)   name_avx512, name_avx2 or name_generic: what a per-ISA file exports
#pragma once
#include "float16.h"

#if defined(__AVX2__)
// gcc 12 warns of its own AVX-512 header.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

#if defined(PYTTC_ISA_AMX)
#define PYTTC_ISA(name) name##_amx
#elif defined(PYTTC_ISA_AVX512)
#define PYTTC_ISA(name) name##_avx512
#elif defined(PYTTC_ISA_AVX2)
#define PYTTC_ISA(name) name##_avx2
#else
#define PYTTC_ISA(name) name##_generic
#endif

namespace pyttc {
namespace {

constexpr float kInf = __builtin_inff();

#if defined(__AVX512F__)

constexpr int W = 16;
struct vf {
  __m512 v;
};
struct vmask {
  __mmask16 m;
};

inline vf set1(float x) { return {_mm512_set1_ps(x)}; }
inline vf load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline vf load(const bf16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
inline vf load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store(float* p, vf a) { _mm512_storeu_ps(p, a.v); }
// The nearest number that bfloat16 holds.
inline vf nearest_bf16(vf a) {
  const __m512i u = _mm512_castps_si512(a.v),
                odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i r = _mm512_and_si512(up, _mm512_set1_epi32(~0xffff));
  return {_mm512_castsi512_ps(_mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q),
                                                    _mm512_set1_epi32(0x7fc00000)))};
}
inline void store(bf16* p, vf a) {
  const __m512i r = _mm512_srli_epi32(_mm512_castps_si512(nearest_bf16(a).v), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}
inline void store(f16* p, vf a) {  // a NaN keeps its sign alone, as in float16.h
  const __m512 sign = _mm512_and_ps(a.v, _mm512_set1_ps(-0.f));
  const __m512 nan = _mm512_or_ps(sign, _mm512_set1_ps(__builtin_nanf("")));
  a.v = _mm512_mask_mov_ps(a.v, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), nan);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline vf operator+(vf a, vf b) { return {_mm512_add_ps(a.v, b.v)}; }
inline vf operator-(vf a, vf b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline vf operator*(vf a, vf b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline vf operator/(vf a, vf b) { return {_mm512_div_ps(a.v, b.v)}; }
inline vf fma(vf a, vf b, vf c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline vf fnma(vf a, vf b, vf c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a*b
// b where a is not greater, so also where either is NaN.
inline vf max(vf a, vf b) { return {_mm512_max_ps(a.v, b.v)}; }
inline vf min(vf a, vf b) { return {_mm512_min_ps(a.v, b.v)}; }
inline vf round(vf a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline vmask operator>(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline vmask operator>=(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline vmask is_nan(vf a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline vf select(vmask m, vf yes, vf no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
inline unsigned bits(vmask m) { return m.m; }
inline vmask from_bits(unsigned bits) { return {static_cast<__mmask16>(bits)}; }
inline vf scale2(vf a, vf n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a * 2^n, n a whole number

#elif defined(__AVX2__)

constexpr int W = 8;
struct vf {
  __m256 v;
};
struct vmask {
  __m256 m;
};

inline vf set1(float x) { return {_mm256_set1_ps(x)}; }
inline vf load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline vf load(const bf16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
}
inline vf load(const f16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store(float* p, vf a) { _mm256_storeu_ps(p, a.v); }
inline vf nearest_bf16(vf a) {
  const __m256i u = _mm256_castps_si256(a.v),
                odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256 r = _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(~0xffff)));
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  return {_mm256_blendv_ps(r, nan, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
inline void store(bf16* p, vf a) {
  const __m256i r = _mm256_srli_epi32(_mm256_castps_si256(nearest_bf16(a).v), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline void store(f16* p, vf a) {  // a NaN keeps its sign alone, as in float16.h
  const __m256 sign = _mm256_and_ps(a.v, _mm256_set1_ps(-0.f));
  const __m256 nan = _mm256_or_ps(sign, _mm256_set1_ps(__builtin_nanf("")));
  a.v = _mm256_blendv_ps(a.v, nan, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline vf operator+(vf a, vf b) { return {_mm256_add_ps(a.v, b.v)}; }
inline vf operator-(vf a, vf b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline vf operator*(vf a, vf b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline vf operator/(vf a, vf b) { return {_mm256_div_ps(a.v, b.v)}; }
inline vf fma(vf a, vf b, vf c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline vf fnma(vf a, vf b, vf c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline vf max(vf a, vf b) { return {_mm256_max_ps(a.v, b.v)}; }
inline vf min(vf a, vf b) { return {_mm256_min_ps(a.v, b.v)}; }
inline vf round(vf a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline vmask operator>(vf a, vf b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline vmask operator>=(vf a, vf b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
inline vmask is_nan(vf a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
inline vf select(vmask m, vf yes, vf no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
inline unsigned bits(vmask m) { return _mm256_movemask_ps(m.m); }
inline vmask from_bits(unsigned bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i hit = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(hit, lane))};
}
// In two steps, since one factor's exponent field cannot hold every n down to the subnormals.
inline vf scale2(vf a, vf n) {
  const __m256i whole = _mm256_cvtps_epi32(max(min(n, set1(254.f)), set1(-252.f)).v);
  const __m256i half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
  const __m256i f = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i g = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, _mm256_castsi256_ps(f)), _mm256_castsi256_ps(g))};
}

#else

constexpr int W = 4;
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t m4 __attribute__((vector_size(16)));
struct vf {
  v4 v;
};
struct vmask {
  m4 m;
};

inline vf set1(float x) { return {v4{x, x, x, x}}; }
inline vf load(const float* p) {
  vf a;
  __builtin_memcpy(&a, p, 16);
  return a;
}
inline vf load(const bf16* p) {
  return {v4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}
inline vf load(const f16* p) {
  return {v4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}
inline vf nearest_bf16(vf a) {
  for (int i = 0; i < W; ++i) {
    bf16 near;
    from_float(a.v[i], near);
    a.v[i] = to_float(near);
  }
  return a;
}
inline void store(float* p, vf a) { __builtin_memcpy(p, &a, 16); }
inline void store(bf16* p, vf a) {
  for (int i = 0; i < W; ++i) from_float(a.v[i], p[i]);
}
inline void store(f16* p, vf a) {
  for (int i = 0; i < W; ++i) from_float(a.v[i], p[i]);
}
inline vf operator+(vf a, vf b) { return {a.v + b.v}; }
inline vf operator-(vf a, vf b) { return {a.v - b.v}; }
inline vf operator*(vf a, vf b) { return {a.v * b.v}; }
inline vf operator/(vf a, vf b) { return {a.v / b.v}; }
inline vf fma(vf a, vf b, vf c) { return {a.v * b.v + c.v}; }
inline vf fnma(vf a, vf b, vf c) { return {c.v - a.v * b.v}; }
inline vmask operator>(vf a, vf b) { return {a.v > b.v}; }
inline vmask operator>=(vf a, vf b) { return {a.v >= b.v}; }
inline vmask is_nan(vf a) { return {a.v != a.v}; }
inline vf select(vmask m, vf yes, vf no) { return {m.m ? yes.v : no.v}; }
inline vf max(vf a, vf b) { return select(a > b, a, b); }
inline vf min(vf a, vf b) { return select(b > a, a, b); }
inline vf round(vf a) {  // to nearest even; a whole number already if it has no fraction bits left
  const vf big = set1(0x1.8p23f), whole = {(a.v + big.v) - big.v};
  const vf magnitude = max(a, {-a.v});
  return select(set1(0x1p22f) > magnitude, whole, a);
}
inline unsigned bits(vmask m) { return (m.m[0] & 1) | (m.m[1] & 2) | (m.m[2] & 4) | (m.m[3] & 8); }
inline vmask from_bits(unsigned bits) {
  const m4 lane = {1, 2, 4, 8}, all = {int(bits), int(bits), int(bits), int(bits)};
  return {(all & lane) == lane};
}
inline vf scale2(vf a, vf n) {
  n = max(min(n, set1(254.f)), set1(-252.f));
  vf r;
  for (int i = 0; i < W; ++i) {
    const int whole = static_cast<int>(n.v[i]), half = whole >> 1;
    r.v[i] = a.v[i] * bits_float(uint32_t(half + 127) << 23) *
             bits_float(uint32_t(whole - half + 127) << 23);
  }
  return r;
}

#endif

inline vf zero() { return set1(0.f); }

// The first n < W elements, `fill` in the rest; nothing past them is read.
template <class T>
inline vf load_n(const T* p, int n, float fill = 0.f) {
  float lane[W];
  for (int i = 0; i < W; ++i) lane[i] = i < n ? to_float(p[i]) : fill;
  return load(lane);
}

template <class T>
inline void store_n(T* p, vf a, int n) {
  float lane[W];
  store(lane, a);
  for (int i = 0; i < n; ++i) from_float(lane[i], p[i]);
}

// Reductions over the lanes, always as the same tree: the lower half with the upper, down to one.
#if defined(__AVX2__)
#if defined(__AVX512F__)
inline __m256 lower(vf a) { return _mm512_castps512_ps256(a.v); }
inline __m256 upper(vf a) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
}
#endif
inline float hsum(vf a) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(lower(a), upper(a));
#else
  const __m256 eight = a.v;
#endif
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float hmax(vf a) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_max_ps(lower(a), upper(a));
#else
  const __m256 eight = a.v;
#endif
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
#else
inline float hsum(vf a) {
  float lane[W];
  store(lane, a);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
inline float hmax(vf a) {
  float lane[W];
  store(lane, a);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}
#endif

// exp(r) for |r| <= ln(2)/2: minimax in relative error (3e-9 before rounding, 6.2e-8 after), exact
// at 0.
inline vf exp_reduced(vf r) {
  vf p = set1(0x1.6a2344p-10f);
  p = fma(p, r, set1(0x1.123a6ap-7f));
  p = fma(p, r, set1(0x1.5558f4p-5f));
  p = fma(p, r, set1(0x1.555490p-3f));
  p = fma(p, r, set1(0x1.fffffcp-2f));
  p = fma(p, r, set1(1.f));
  return fma(p, r, set1(1.f));
}

constexpr float kLog2e = 0x1.715476p+0f;
constexpr float kLn2High = 0x1.62e4p-1f;    // few bits, so that n * kLn2High is exact
constexpr float kLn2Low = 0x1.7f7d1cp-20f;  // ln(2) - kLn2High

// exp, about 1 ulp: exp(-inf) = 0, NaN stays NaN, no overflow check beyond infinity's own.
inline vf exp(vf x) {
  x = max(set1(-104.f), min(set1(89.f), x));
  const vf n = round(x * set1(kLog2e));
  const vf r = fnma(n, set1(kLn2Low), fnma(n, set1(kLn2High), x));
  return scale2(exp_reduced(r), n);
}

// 2^(x - kDown) for x <= 0, about 1 ulp: 2^-kDown at 0, 0 at -inf, NaN stays NaN.
template <int kDown = 0>
inline vf exp2(vf x) {
  constexpr float unit = 1.f / (1 << kDown);
#if defined(__AVX512F__)
  const vf r = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
#else
  x = max(set1(-151.f), x);
  const vf near = round(x), n = select(near > x, near - set1(1.f), near), r = x - n;
#endif
  vf p = set1(unit *
              0x1.c4456ep-13f);  // minimax in relative error for 0 <= r <= 1: 2e-9 before rounding
  p = fma(p, r, set1(unit * 0x1.47373ap-10f));
  p = fma(p, r, set1(unit * 0x1.3cfd82p-7f));
  p = fma(p, r, set1(unit * 0x1.c68af6p-5f));
  p = fma(p, r, set1(unit * 0x1.ebfd3ap-3f));
  p = fma(p, r, set1(unit * 0x1.62e42cp-1f));
  p = fma(p, r, set1(unit));
#if defined(__AVX512F__)
  return {_mm512_scalef_ps(p.v, x.v)};  // by the whole part of x
#else
  return scale2(p, n);
#endif
}

}  // namespace
}  // namespace pyttc
