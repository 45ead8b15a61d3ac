// The largest pieces in which rows of tensors may be moved.
#pragma once
#include <initializer_list>

#include "cuda_api.h"
#include "tensor.h"

namespace pyttc {

// Whether every row (run of the last dimension) begins at a multiple of 16 bytes and is as long.
inline bool in_sixteens(const Tensor& t) {
  const int64_t width = t.t.dtype.bits / 8;
  const int last = t.t.ndim - 1;
  bool whole = reinterpret_cast<uintptr_t>(t.data<char>()) % 16 == 0;
  whole = whole && t.size(last) * width % 16 == 0;
  for (int i = 0; i < last; ++i) whole = whole && t.stride(i) * width % 16 == 0;
  return whole;
}

// Calls f(Piece{}): 16 bytes where all tensors allow it and `sixteens`, else one element.
template <class F>
cudaError_t with_pieces(std::initializer_list<Tensor> tensors, F f, bool sixteens = true) {
  for (const Tensor& t : tensors) sixteens = sixteens && in_sixteens(t);
  if (sixteens) return f(uint4{});
  return tensors.begin()->t.dtype.bits == 32 ? f(uint32_t{}) : f(uint16_t{});
}

}  // namespace pyttc
