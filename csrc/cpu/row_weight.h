// 2^(x * scale - ref) of a vector of logits, which is what a row's scan is bound by. The exponent
// is cut into whole eighths, which a fused multiply-add rounds to by itself beside 1.5 * 2^23, and
// a rest: x * scale is in two floats and the first product is exact inside the next fma, so offsets
// of 1e4 cost no accuracy. The eighths index a table of eight powers, held in a register, and move
// up to be an exponent; the rest goes through three terms. Seven multiplications in all.
#pragma once
#include "row_scan.h"
#include "simd.h"

namespace pyttc {
namespace {

constexpr int kSteps = 8;            // of the exponent between powers of two
constexpr float kWhole = 0x1.8p23f;  // floats beside it are whole numbers
constexpr int kExponent = 23 - 3;    // where a number of eighths is an exponent

// The floats nearest 2^(j / 8), less the exponent that j itself makes when it moves up.
alignas(32) constexpr uint32_t kPowers[kSteps] = {
    0x3f800000 - (0u << kExponent), 0x3f8b95c2 - (1u << kExponent), 0x3f9837f0 - (2u << kExponent),
    0x3fa5fed7 - (3u << kExponent), 0x3fb504f3 - (4u << kExponent), 0x3fc5672a - (5u << kExponent),
    0x3fd744fd - (6u << kExponent), 0x3feac0c7 - (7u << kExponent)};

// 2^(n / 8) for n in the low bits of s = kWhole + n, -1000 < n < 1000.
#if defined(__AVX512F__)
using Powers = __m512;
inline Powers load_powers() {
  return _mm512_castsi512_ps(
      _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(kPowers))));
}
inline vf step_power(vf s, Powers powers) {
  const __m512i n = _mm512_castps_si512(s.v);
  const __m512i power = _mm512_castps_si512(_mm512_permutexvar_ps(n, powers));
  return {_mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_slli_epi32(n, kExponent)))};
}
#elif defined(__AVX2__)
using Powers = __m256;
inline Powers load_powers() { return _mm256_load_ps(reinterpret_cast<const float*>(kPowers)); }
inline vf step_power(vf s, Powers powers) {
  const __m256i n = _mm256_castps_si256(s.v);
  const __m256i power = _mm256_castps_si256(_mm256_permutevar8x32_ps(powers, n));
  return {_mm256_castsi256_ps(_mm256_add_epi32(power, _mm256_slli_epi32(n, kExponent)))};
}
#else
using Powers = const uint32_t*;
inline Powers load_powers() { return kPowers; }
inline vf step_power(vf s, Powers powers) {
  for (int i = 0; i < W; ++i) {
    const uint32_t n = float_bits(s.v[i]);
    s.v[i] = bits_float(powers[n % kSteps] + (n << kExponent));
  }
  return s;
}
#endif

// Constants of one reference, in registers.
struct Reference {
  vf high, low, whole, floor;
  Powers powers;
  Reference(const Scale& scale, double ref, float floor)
      : high(set1(kSteps * scale.high)),
        low(set1(kSteps * scale.low)),
        whole(set1(static_cast<float>(kWhole - kSteps * ref))),
        floor(set1(floor)),
        powers(load_powers()) {}
};

// The exponent as whole eighths beside kWhole and the rest in eighths.
inline void split(vf x, const Reference& r, vf& steps, vf& rest) {
#if defined(__AVX2__)
  steps = fma(x, r.high, r.whole);
  rest = fma(x, r.low, fma(x, r.high, r.whole - steps));
#else  // no fma: the exact product of two floats needs doubles
  for (int i = 0; i < W; ++i) {
    const double z = static_cast<double>(x.v[i]) * r.high.v[i];
    steps.v[i] = static_cast<float>(z + r.whole.v[i]);
    const double n = static_cast<double>(steps.v[i]) - r.whole.v[i];
    rest.v[i] = static_cast<float>(z - n + static_cast<double>(x.v[i]) * r.low.v[i]);
  }
#endif
}

// The weight of x; at least the floor, no more than 16 and finite, or NaN. The terms of
// 2^(rest / 8) - 1 are minimax in relative error with float coefficients: 2.6e-8 before rounding.
inline vf power(vf x, const Reference& r) {
  vf steps, f;
  split(x, r, steps, f);
  const vf q = fma(fma(set1(0x1.c69094p-14f), f, set1(0x1.ec0c28p-9f)), f, set1(0x1.62e432p-4f));
  const vf nearest = step_power(steps, r.powers);
  return fma(nearest, q * f, nearest);
}

// Of any columns, exactly 0 for those 2^-120 below the reference.
inline vf weight(vf x, const Reference& r) {
  return select(x >= r.floor, power(max(r.floor, x), r), zero());
}

}  // namespace
}  // namespace pyttc
