// Whether the arguments of a call fit together. A native op refuses what its `check` in pyttc/ops
// would, before it writes anything, but in a tenth of the time; `check` then looks at the refused
// call and says which argument is wrong, and how.
#pragma once
#include <initializer_list>
#include <new>

#include "tensor.h"

namespace pyttc {

constexpr int64_t kAny = -1;

inline void require(bool fits) {
  if (!fits) throw std::invalid_argument("the arguments do not fit together");
}

// The number of elements of an allocation: an error where 63 bits do not hold it.
inline int64_t elements(std::initializer_list<int64_t> sizes) {
  int64_t n = 1;
  for (const int64_t size : sizes)
    if (__builtin_mul_overflow(n, size, &n)) throw std::bad_alloc();
  return n;
}

inline bool on_cpu(const Tensor& t) { return t.t.device.type == dlpack::kCpu; }

inline bool is_float(const Tensor& t) {
  const DType dtype = t.dtype();
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  if (t.t.ndim != static_cast<int>(shape.size())) return false;
  int i = 0;
  for (const int64_t n : shape) {
    if (n != kAny && n != t.size(i)) return false;
    ++i;
  }
  return true;
}

inline bool same_shape(const Tensor& a, const Tensor& b, int dims) {
  for (int i = 0; i < dims; ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

inline bool dense_last(const Tensor& t) {
  const int last = t.t.ndim - 1;
  return t.size(last) <= 1 || t.stride(last) == 1;
}

inline bool fits(const Tensor& t, DType dtype, std::initializer_list<int64_t> shape) {
  return on_cpu(t) && has_shape(t, shape) && t.dtype() == dtype && dense_last(t);
}

// Indices may have any stride.
inline bool fits_index(const Tensor& t, std::initializer_list<int64_t> shape) {
  return on_cpu(t) && has_shape(t, shape) && (t.dtype() == DType::i32 || t.dtype() == DType::i64);
}

}  // namespace pyttc
