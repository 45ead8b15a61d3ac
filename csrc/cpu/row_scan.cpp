#include "row_scan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

namespace pyttc {
namespace {

constexpr double kLog2e = 1.4426950408889634074, kLn2 = 0.69314718055994530942;
constexpr double kFloorBits = 120;  // below 2^-120 of the reference a weight is 0
constexpr double kWide = 0x1p19;    // beyond, eighths of x * scale are no whole floats

}  // namespace

double power_of_two(double n) {
  const int64_t whole = n > -1022 && n < 1023 ? static_cast<int64_t>(n) : 1024;
  if (whole != n) return std::exp2(n);
  const uint64_t bits = static_cast<uint64_t>(whole + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, 8);
  return power;
}

Scale make_scale(double temperature) {
  // Past 1e250 any two unequal floats are further apart than weights reach.
  const double c = std::min(kLog2e / temperature, 1e250);
  Scale scale{c, 1 / c, static_cast<float>(c), 0};
  scale.low = static_cast<float>(c - scale.high);
  return scale;
}

bool is_wide(const Scale& scale, double z) {
  return std::abs(z) > kWide || scale.c < 0x1p-100 || scale.c > 0x1p100;
}

float reference_floor(const Scale& scale, double ref) {
  return static_cast<float>(std::max((ref - kFloorBits) * scale.inverse, -3.4028234663852886e38));
}

void begin_scan(RowScan& s, const Scale& scale, int64_t k, uint64_t* keys, BlockStat* blocks) {
  s.scale = scale;
  s.invalid = false;
  s.threshold = -INFINITY;
  s.k = k;
  s.count = 0;
  s.full = full_at(k);
  s.keys = keys;
  s.blocks = blocks;
  set_reference(s, -INFINITY);
}

void set_reference(RowScan& s, float largest) {
  s.wide = false;
  if (!std::isfinite(largest)) {  // nothing to measure by yet: any other value is above the ceiling
    s.ref = kFloorBits;
    s.above = -kFloorBits;
    s.origin = s.floor = 0;
    s.ceiling = -INFINITY;
    return;
  }
  const double z = largest * s.scale.c;
  s.wide = is_wide(s.scale, z);
  if (s.wide) return;
  const double ref = (z + 0x1.8p52) - 0x1.8p52;  // to a whole number
  s.ref = ref;
  s.above = z - ref;
  s.origin = largest;
  s.floor = reference_floor(s.scale, ref);
  s.ceiling = static_cast<float>(std::min((ref + 4) * s.scale.inverse, 3.4028234663852886e38));
}

void wide_block(const float* x, int64_t block, RowScan& s) {
  BlockStat& stat = s.blocks[block];
  stat = BlockStat();
  stat.wide = true;
  float largest = -INFINITY;
  for (int i = 0; i < kBlock; ++i) {
    if (!(x[i] < INFINITY)) {
      s.invalid = true;
      return;
    }
    largest = std::max(largest, x[i]);
  }
  if (largest == -INFINITY) return;
  stat.largest = largest;
  stat.ref = largest * s.scale.c;
  for (int i = 0; i < kBlock; ++i) {
    const double t = x[i] * s.scale.c - stat.ref;
    if (t < -kFloorBits) continue;
    const double e = std::exp2(t);
    stat.sum += e;
    stat.moment += e * t;
  }
}

void wide_weights(const float* x, const Scale& scale, double ref, float* e) {
  for (int i = 0; i < kGroup; ++i) {
    const double t = x[i] * scale.c - ref;
    e[i] = t < -kFloorBits ? 0.f : static_cast<float>(std::exp2(t));
  }
}

void raise_threshold(RowScan& s, int64_t begin, int64_t end) {
  int64_t n = end - begin;
  if (n < s.k) return;
  std::vector<float> largest(n);
  for (int64_t i = 0; i < n; ++i) largest[i] = s.blocks[begin + i].largest;
  // Of some more than k, merged from blocks, the k-th best is hardly lower, and found sooner.
  while (n >= 4 * s.k) {
    const int64_t half = n / 2;
    for (int64_t i = 0; i < half; ++i) largest[i] = std::max(largest[i], largest[n - 1 - i]);
    n -= half;
  }
  const auto kth = largest.begin() + s.k - 1;
  std::nth_element(largest.begin(), kth, largest.begin() + n, std::greater<>());
  s.threshold = std::max(s.threshold, std::nextafter(*kth, -INFINITY));
}

void compact(RowScan& s) {
  if (s.k == 0 || s.count < s.k) return;
  std::nth_element(s.keys, s.keys + s.k - 1, s.keys + s.count, std::greater<>());
  s.count = s.k;
  s.threshold = key_value(s.keys[s.k - 1]);
}

void merge_best(RowScan& s, const RowScan& other) {
  for (int64_t i = 0; i < other.count; ++i) {
    s.keys[s.count++] = other.keys[i];
    if (s.count >= s.full) compact(s);
  }
  s.invalid |= other.invalid;
}

int64_t sort_best(RowScan& s) {
  compact(s);
  std::sort(s.keys, s.keys + s.count, std::greater<>());
  return s.count;
}

RowTotals total(const BlockStat* blocks, int64_t n) {
  RowTotals t{0, -INFINITY, 0, 0};
  double ref = -INFINITY, moment = 0;
  for (int64_t b = 0; b < n; ++b)
    if (blocks[b].sum > 0) ref = std::max(ref, blocks[b].ref);
  if (ref == -INFINITY) return t;
  double shift = 0, weight = 1;
  for (int64_t b = 0; b < n; ++b) {
    const BlockStat& stat = blocks[b];
    if (!(stat.sum > 0)) continue;
    if (stat.ref - ref != shift) {  // blocks of a segment mostly share it
      shift = stat.ref - ref;
      weight = power_of_two(shift);
    }
    t.sum += weight * stat.sum;
    if (weight > 0) moment += weight * (stat.moment + shift * stat.sum);
  }
  t.ref = ref;
  t.log2_sum = std::log2(t.sum);
  t.entropy = std::max(0., kLn2 * (t.log2_sum - moment / t.sum));
  return t;
}

}  // namespace pyttc
