// Tensors as the kernels see them: shape, strides and data, read through DLPack. Nothing here knows
// torch or Python. Shapes, dtypes and strides were checked by pyttc/ops before a call comes here;
// what is checked in C++ is what only the data can tell (lengths, indices).
#pragma once
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "dlpack.h"
#include "float16.h"

namespace pyttc {

enum class DType { f32, bf16, f16, i32, i64, u8 };

// Borrowed for the length of a call: the caller holds the tensor.
struct Tensor {
  dlpack::Tensor t;

  int64_t size(int i) const { return t.shape[i]; }
  int64_t stride(int i) const { return t.strides[i]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < t.ndim; ++i) n *= t.shape[i];
    return n;
  }
  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
  }
  DType dtype() const {
    using namespace dlpack;
    switch (t.dtype.code * 256 + t.dtype.bits) {
      case kFloat * 256 + 32:
        return DType::f32;
      case kBfloat * 256 + 16:
        return DType::bf16;
      case kFloat * 256 + 16:
        return DType::f16;
      case kInt * 256 + 32:
        return DType::i32;
      case kInt * 256 + 64:
        return DType::i64;
      case kUint * 256 + 8:
      case kBool * 256 + 8:
        return DType::u8;
    }
    throw std::invalid_argument("unsupported dtype");
  }
};

// One that the caller has just allocated.
struct Output : Tensor {};

using OptionalTensor = std::optional<Tensor>;

// An int32 or int64 tensor of any rank up to 2, read element by element as 64 bits.
struct Indices {
  const void* data = nullptr;
  bool wide = false;
  int64_t stride[2] = {0, 0};

  Indices() = default;
  explicit Indices(const Tensor& t) : data(t.data<void>()), wide(t.dtype() == DType::i64) {
    for (int i = 0; i < t.t.ndim && i < 2; ++i) stride[i] = t.stride(i);
  }
  int64_t at(int64_t i, int64_t j = 0) const {
    int64_t k = i * stride[0] + j * stride[1];
    return wide ? static_cast<const int64_t*>(data)[k] : static_cast<const int32_t*>(data)[k];
  }
};

// std::invalid_argument is Python's ValueError.
[[noreturn]] inline void fail(const std::string& name, int64_t at, int64_t got,
                              const std::string& expected) {
  throw std::invalid_argument(name + ": element " + std::to_string(at) + " is " +
                              std::to_string(got) + ", expected " + expected);
}

// Calls f(T{}) with the float type behind a dtype.
template <class F>
auto dispatch_float(DType dtype, F f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      throw std::invalid_argument("dtype must be float32, bfloat16 or float16");
  }
}

}  // namespace pyttc
