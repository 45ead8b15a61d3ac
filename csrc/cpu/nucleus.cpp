#include "nucleus.h"

#include <algorithm>
#include <cmath>

namespace pyttc {

uint64_t key_at_mass(std::vector<Weighted>& columns, double before, double mass) {
  constexpr int kBits = 11, kBins = 1 << kBits;
  constexpr size_t kFew = 64;
  uint64_t any = 0, all = ~uint64_t{0};
  for (const Weighted& c : columns) any |= c.key, all &= c.key;
  const int digits = any == all ? 0 : 64 - __builtin_clzll(any ^ all);  // in which keys differ
  std::vector<double> bins(kBins);
  for (int shift = std::max(0, digits - kBits); columns.size() > kFew;
       shift = std::max(0, shift - kBits)) {
    const auto bin_of = [&](uint64_t key) { return key >> shift & (kBins - 1); };
    std::fill(bins.begin(), bins.end(), 0);
    for (const Weighted& c : columns) bins[bin_of(c.key)] += c.weight;
    uint64_t found = 0;  // the bin where the mass is reached, else the last with any
    double ahead = before;
    for (int bin = kBins - 1; bin >= 0; --bin) {
      if (!(bins[bin] > 0)) continue;
      found = bin;
      before = ahead;
      if ((ahead += bins[bin]) >= mass) break;
    }
    columns.erase(std::remove_if(columns.begin(), columns.end(),
                                 [&](const Weighted& c) { return bin_of(c.key) != found; }),
                  columns.end());
    if (shift == 0) break;
  }
  std::sort(columns.begin(), columns.end(),
            [](const Weighted& a, const Weighted& b) { return a.key > b.key; });
  uint64_t last = columns[0].key;
  for (const Weighted& c : columns) {
    if (!(c.weight > 0)) continue;
    last = c.key;
    if ((before += c.weight) >= mass) break;
  }
  return last;
}

BlockStat unit_of(const Scale& scale, float largest) {
  BlockStat stat;
  const double z = largest * scale.c;
  stat.wide = is_wide(scale, z);
  stat.ref = stat.wide ? z : std::rint(z);
  return stat;
}

ValueRange guess_end(const Row& row, const Filter* filter, const Scale& scale,
                     const BlockStat& unit, double tail, double errors) {
  constexpr int kShift = 19;                   // bins of a sixteenth of a power of two
  constexpr int kBins = 0x42000000 >> kShift;  // up to 32
  constexpr int64_t kSampled = 256;
  const int64_t groups = (row.v + kGroup - 1) / kGroup,
                step = std::max<int64_t>(1, groups / kSampled);
  std::vector<double> bins(kBins);
  for (int64_t g = 0; g < groups; g += step) {
    float e[kGroup];
    const int64_t begin = g * kGroup, end = std::min(row.v, begin + kGroup);
    row.kernels.weights(row.columns(begin, end), row.v, g, g + 1, filter, scale, unit, e);
    for (const float weight : e) bins[float_bits(weight) >> kShift] += weight;
  }
  const auto edge = [](int bin) { return bits_float(static_cast<uint32_t>(bin) << kShift); };
  const auto value = [&](int bin) {
    return static_cast<float>((std::log2(edge(bin)) + unit.ref) * scale.inverse);
  };
  const double factor = static_cast<double>(step);
  double sum = 0, variance = 0;
  int low = 1, high = 0;
  for (int bin = 1; bin + 1 < kBins && !high; ++bin) {
    // One more column of this size may be there, unseen.
    const double unseen = factor * edge(bin + 1), least = sum + factor * bins[bin] - tail;
    const auto error2 = [&](double v) { return errors * errors * (v + unseen * unseen); };
    if (sum <= tail && (tail - sum) * (tail - sum) >= error2(variance)) low = bin;
    sum += factor * bins[bin];
    variance += factor * bins[bin] * unseen;
    if (least >= 0 && least * least >= error2(variance)) high = bin + 1;
  }
  return {value(low), high ? value(high) : INFINITY};
}

}  // namespace pyttc
