// 16-bit floats as storage types, converted one value at a time. Kernels that convert whole vectors
// use simd.h; both round to nearest even.
#pragma once
#include <cstdint>
#include <cstring>

namespace pyttc {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Internal linkage: these are included by files compiled for different instruction sets.
namespace {

inline uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float bits_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bits_float(uint32_t{x.bits} << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00)  // infinity, NaN
    return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Scaling by 2^112 turns the half's exponent bias into the float's, subnormals included.
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}

inline void from_float(float x, float& out) { out = x; }
inline void from_float(float x, bf16& out) {
  const uint32_t u = float_bits(x);
  out.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline void from_float(float x, f16& out) {
  const uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out.bits = static_cast<uint16_t>(sign | 0x7e00);
  } else if (magnitude >= 0x477ff000u) {  // rounds past 65504
    out.bits = static_cast<uint16_t>(sign | 0x7c00);
  } else if (magnitude < 0x38800000u) {  // subnormal: the float adder does the rounding
    const float shifted = bits_float(magnitude) + 0.5f;
    out.bits = static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u));
  } else {
    const uint32_t rounded = magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1);
    out.bits = static_cast<uint16_t>(sign | rounded >> 13);
  }
}

}  // namespace
}  // namespace pyttc
