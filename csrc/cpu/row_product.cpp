#include "row_product.h"

#include <algorithm>
#include <vector>

#include "isa.h"

namespace pyttc {
namespace {

const ProductKernel& kernel(DType dtype) {
  if (dtype == DType::bf16 && isa() >= Isa::avx512bf16)
    return isa() == Isa::amx ? product_bf16_amx : product_bf16_avx512bf16;
  const ProductKernels& kernels = pick(product_generic, product_avx2, product_avx512);
  return dtype == DType::f32 ? kernels.f32 : dtype == DType::bf16 ? kernels.bf16 : kernels.f16;
}

int64_t width(const Tensor& t) { return t.dtype() == DType::f32 ? 4 : 2; }

}  // namespace

RowProduct::RowProduct(const Tensor& rows, const Tensor& weight)
    : kernel_(kernel(rows.dtype())),
      rows_(rows),
      weight_(weight),
      packed_(pack(rows.data<void>(), rows.stride(0), rows.size(0))) {}

void RowProduct::block(int64_t begin, int64_t count, int64_t first, int64_t n, float* out) const {
  const int64_t offset = kernel_.packed_bytes(first, rows_.size(1));
  block(begin, count, packed_.get() + offset / int64_t{sizeof(CacheLine)}, n, out);
}

void RowProduct::block(int64_t begin, int64_t count, const CacheLine* packed, int64_t n,
                       float* out) const {
  const char* w = weight_.data<char>() + begin * weight_.stride(0) * width(weight_);
  const int there = static_cast<int>(std::min(count, columns() - begin));
  kernel_.block(w, weight_.stride(0), there, packed, n, rows_.size(1), out);
}

void RowProduct::finish(const float* sums, int64_t begin, int64_t count, int64_t first, int64_t n,
                        const OptionalTensor& bias, const Tensor& out) const {
  const int64_t bytes = width(out);
  char* to = out.data<char>() + (first * out.stride(0) + begin) * bytes;
  kernel_.finish(sums, n, static_cast<int>(count),
                 bias ? bias->data<char>() + begin * bytes : nullptr, to, out.stride(0));
}

CacheLines RowProduct::pack(const int64_t* which, int64_t n) const {
  const int64_t bytes = rows_.size(1) * width(rows_), stride = rows_.stride(0) * width(rows_);
  std::vector<char> rows(elements({n, bytes}));
  for (int64_t r = 0; r < n; ++r)
    std::copy_n(rows_.data<char>() + which[r] * stride, bytes, rows.data() + r * bytes);
  return pack(rows.data(), rows_.size(1), n);
}

CacheLines RowProduct::pack(const void* rows, int64_t stride, int64_t n) const {
  const int64_t bytes = kernel_.packed_bytes(n, rows_.size(1)), line = sizeof(CacheLine);
  CacheLines packed(new CacheLine[(bytes + line - 1) / line]);
  kernel_.pack(rows, stride, n, rows_.size(1), packed.get());
  return packed;
}

}  // namespace pyttc
