// The sums, or the maxima, of W vectors side by side: as hsum and hmax fold one, with a third of
// the shuffles.
#pragma once
#include "simd.h"

namespace pyttc {
namespace {

// foldN(a, b): the lanes of a, N apart, in pairs, then those of b. Shuffles share a port with the
// multiply-adds; a blend does not.
#if defined(__AVX512F__)
template <class F>
inline vf fold8(vf a, vf b, F f) {
  return f(vf{_mm512_mask_blend_ps(0xff00, a.v, b.v)}, vf{_mm512_shuffle_f32x4(a.v, b.v, 0x4e)});
}
template <class F>
inline vf fold4(vf a, vf b, F f) {
  return f(vf{_mm512_shuffle_f32x4(a.v, b.v, 0x88)}, vf{_mm512_shuffle_f32x4(a.v, b.v, 0xdd)});
}
template <class F>
inline vf fold2(vf a, vf b, F f) {
  return f(vf{_mm512_mask_blend_ps(0xcccc, a.v, b.v)}, vf{_mm512_shuffle_ps(a.v, b.v, 0x4e)});
}
template <class F>
inline vf fold1(vf a, vf b, F f) {
  return f(vf{_mm512_shuffle_ps(a.v, b.v, 0x88)}, vf{_mm512_shuffle_ps(a.v, b.v, 0xdd)});
}
template <class F>
inline vf to_quads(const vf* a, F f) {
  return fold4(fold8(a[0], a[4], f), fold8(a[8], a[12], f), f);
}
#elif defined(__AVX2__)
template <class F>
inline vf fold4(vf a, vf b, F f) {
  return f(vf{_mm256_permute2f128_ps(a.v, b.v, 0x20)}, vf{_mm256_permute2f128_ps(a.v, b.v, 0x31)});
}
template <class F>
inline vf fold2(vf a, vf b, F f) {
  return f(vf{_mm256_shuffle_ps(a.v, b.v, 0x44)}, vf{_mm256_shuffle_ps(a.v, b.v, 0xee)});
}
template <class F>
inline vf fold1(vf a, vf b, F f) {
  return f(vf{_mm256_shuffle_ps(a.v, b.v, 0x88)}, vf{_mm256_shuffle_ps(a.v, b.v, 0xdd)});
}
template <class F>
inline vf to_quads(const vf* a, F f) {
  return fold4(a[0], a[4], f);
}
#else
template <class F>
inline vf fold2(vf a, vf b, F f) {
  return f(vf{v4{a.v[0], a.v[1], b.v[0], b.v[1]}}, vf{v4{a.v[2], a.v[3], b.v[2], b.v[3]}});
}
template <class F>
inline vf fold1(vf a, vf b, F f) {
  return f(vf{v4{a.v[0], a.v[2], b.v[0], b.v[2]}}, vf{v4{a.v[1], a.v[3], b.v[1], b.v[3]}});
}
template <class F>
inline vf to_quads(const vf* a, F) {
  return a[0];
}
#endif

template <class F>
inline vf fold(const vf* a, F f) {
  return fold1(fold2(to_quads(a, f), to_quads(a + 1, f), f),
               fold2(to_quads(a + 2, f), to_quads(a + 3, f), f), f);
}

inline vf hsums(const vf* a) {
  return fold(a, [](vf x, vf y) { return x + y; });
}
inline vf hmaxes(const vf* a) {
  return fold(a, [](vf x, vf y) { return max(x, y); });
}

}  // namespace
}  // namespace pyttc
