// Rows [B, H] times the transpose of a weight matrix [V, H], in pieces that stay in cache. What a
// row gives depends on that row and on nothing beside it.
#pragma once
#include <memory>

#include "fits.h"
#include "product.h"

namespace pyttc {

constexpr int64_t kProductRows = 64;  // whose results of a block fit the second-level cache
constexpr int64_t kGranule = 16;      // rows that some kernels pack together

// Refuses what is no such product.
inline void require_product(const Tensor& rows, const Tensor& weight) {
  require(has_shape(rows, {kAny, kAny}) && has_shape(weight, {kAny, rows.size(1)}));
  require(is_float(rows) && fits(rows, rows.dtype(), {kAny, kAny}) &&
          fits(weight, rows.dtype(), {kAny, kAny}) && rows.size(1) >= 1 && weight.size(0) >= 1);
}

struct alignas(64) CacheLine {
  char bytes[64];
};
using CacheLines = std::unique_ptr<CacheLine[]>;

// The product, of which pieces are computed when they are asked for.
class RowProduct {
 public:
  RowProduct(const Tensor& rows, const Tensor& weight);

  int64_t rows() const { return rows_.size(0); }
  int64_t columns() const { return weight_.size(0); }

  // out[r * kProductBlock + c] of rows first + r, r < n, first a multiple of kGranule, and columns
  // begin + c, c < count <= kProductBlock, as far as there are such columns.
  void block(int64_t begin, int64_t count, int64_t first, int64_t n, float* out) const;
  // The same of n rows that `pack` gave.
  void block(int64_t begin, int64_t count, const CacheLine* packed, int64_t n, float* out) const;
  // Rows first .. first + n of out, columns begin .. begin + count, from what `block` gave; bias
  // [V].
  void finish(const float* sums, int64_t begin, int64_t count, int64_t first, int64_t n,
              const OptionalTensor& bias, const Tensor& out) const;
  // The rows `which`, in the layout `block` reads.
  CacheLines pack(const int64_t* which, int64_t n) const;

 private:
  CacheLines pack(const void* rows, int64_t stride, int64_t n) const;

  const ProductKernel& kernel_;
  const Tensor &rows_, &weight_;
  const CacheLines packed_;
};

}  // namespace pyttc
