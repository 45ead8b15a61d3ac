// Where a nucleus ends: the column at which the weights of the best, added up, reach a mass. It is
// looked for in a narrow range of values, which a sample of the row shows; all above the range is
// summed on the way, so the row is read twice in all.
#pragma once
#include <vector>

#include "row_score.h"

namespace pyttc {

struct Weighted {
  uint64_t key;  // order_key
  float weight;
};

// The key at which the cumulative weight, best first and `before` ahead of the first, reaches
// `mass`, or the last with any weight. The columns are reordered; there is at least one.
uint64_t key_at_mass(std::vector<Weighted>& columns, double before, double mass);

// What weights are measured by, for values around `largest`.
BlockStat unit_of(const Scale& scale, float largest);

struct ValueRange {
  float low, high;  // low <= x < high; empty if they are not in order
};

// Where the weights of the row's least columns, added up, reach `tail`, give or take `errors`
// standard errors of an estimate from a sixteenth of the row or less. In units of `unit`, which is
// not wide.
ValueRange guess_end(const Row& row, const Filter* filter, const Scale& scale,
                     const BlockStat& unit, double tail, double errors);

}  // namespace pyttc
