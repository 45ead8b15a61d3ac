// Bound by memory: three rows of D values move for two multiplications an element.
#pragma once
#include "merge_states.h"
#include "simd.h"

namespace pyttc {
namespace {

template <class T>
void merge_row(const void* a_, const void* b_, void* out_, MergeWeights w, int64_t d) {
  const T *a = static_cast<const T*>(a_), *b = static_cast<const T*>(b_);
  T* out = static_cast<T*>(out_);
  const vf wa = set1(w.a), wb = set1(w.b);
  // A weight of 0 belongs to a state that saw nothing: its values are not read into the result. Both
  // products are rounded: fused into the sum, one of them would not be, and a + b not be b + a.
  const auto merge = [&](vf x, vf y) {
    const vf ax = w.a == 0.f ? zero() : wa * x, by = w.b == 0.f ? zero() : wb * y;
    return ax + by;
  };
  int64_t i = 0;
  for (; i + W <= d; i += W) store(out + i, merge(load(a + i), load(b + i)));
  const int rest = static_cast<int>(d - i);
  if (rest) store_n(out + i, merge(load_n(a + i, rest), load_n(b + i, rest)), rest);
}

}  // namespace

extern const MergeStates PYTTC_ISA(merge_states) = {merge_row<float>, merge_row<bf16>,
                                                    merge_row<f16>};

}  // namespace pyttc
