// A parameter of each row of a call: a number for all, or a tensor [B] of 64- or 32-bit floats or
// integers.
#pragma once
#include <type_traits>

#include "fits.h"

namespace pyttc {

template <class Wide, class Narrow>
struct PerRow {
  Wide number{};
  const void* data = nullptr;  // null: the number holds, or there are no rows
  bool wide = false;
  int64_t stride = 0, rows = kAny;

  PerRow() = default;
  explicit PerRow(Wide number) : number(number) {}
  explicit PerRow(const Tensor& t) : data(t.data<void>()), wide(t.t.dtype.bits == 64) {
    constexpr auto kCode = std::is_floating_point_v<Wide> ? dlpack::kFloat : dlpack::kInt;
    require(on_cpu(t) && t.t.ndim == 1 && t.t.dtype.code == kCode && t.t.dtype.bits >= 32);
    stride = t.stride(0), rows = t.size(0);
  }
  bool serves(int64_t n) const { return rows == kAny || rows == n; }

  Wide at(int64_t i) const {
    if (!data) return number;
    return wide ? static_cast<const Wide*>(data)[i * stride]
                : static_cast<const Narrow*>(data)[i * stride];
  }
};
using Reals = PerRow<double, float>;
using Whole = PerRow<int64_t, int32_t>;

}  // namespace pyttc
