// The linear layers of a decoding step: few rows, so bound by reading the weights, each of which is
// read once. Work is cut by columns alone, and into pieces small enough for threads to share.
#include <algorithm>

#include "ops.h"
#include "parallel.h"
#include "row_product.h"

namespace pyttc {
namespace {

constexpr int64_t kPiece = 64;  // columns a thread takes at once

}  // namespace

// x [B, H], weight [V, H], bias [V] or none; out [B, V]
void linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Output& out,
            int threads) {
  require_product(x, weight);
  const int64_t n = x.size(0), columns = weight.size(0);
  require(fits(out, x.dtype(), {n, columns}));
  require(!bias || fits(*bias, x.dtype(), {columns}));
  if (n == 0) return;
  const RowProduct product(x, weight);
  parallel_for((columns + kPiece - 1) / kPiece, threads, [&](int64_t piece) {
    alignas(64) float sums[kProductRows * kProductBlock];
    const int64_t begin = piece * kPiece, count = std::min(kPiece, columns - begin);
    for (int64_t first = 0; first < n; first += kProductRows) {
      const int64_t rows = std::min(kProductRows, n - first);
      product.block(begin, count, first, rows, sums);
      product.finish(sums, begin, count, first, rows, bias, out);
    }
  });
}

}  // namespace pyttc
