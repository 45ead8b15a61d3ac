#include "merge_states.h"

#include "fits.h"
#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pyttc {
namespace {

// Where rows lie in a tensor whose first `dims` dimensions number them.
struct Rows {
  const Tensor& t;
  int dims;
  bool even = true;    // one stride takes from each row to the next
  int64_t stride = 0;  // in elements

  Rows(const Tensor& t, int dims) : t(t), dims(dims) {
    int last = -1;  // the dimension of more than one row before this one
    for (int k = dims - 1; k >= 0; --k) {
      if (t.size(k) == 1) continue;
      if (last < 0)
        stride = t.stride(k);
      else
        even &= t.stride(k) == t.stride(last) * t.size(last);
      last = k;
    }
  }
  int64_t offset(int64_t i) const {
    if (even) return i * stride;
    int64_t sum = 0;
    for (int k = dims - 1; k >= 0; --k) {
      sum += i % t.size(k) * t.stride(k);
      i /= t.size(k);
    }
    return sum;
  }
};

}  // namespace

// out_a, out_b, out [..., D]; lse_a, lse_b, lse [...]
void merge_states(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b,
                  const Tensor& lse_b, const Output& out, const Output& lse, int threads) {
  const int dims = out_a.t.ndim - 1;
  require(dims >= 0 && out_b.t.ndim == dims + 1 && lse_a.t.ndim == dims && lse_b.t.ndim == dims);
  require(on_cpu(out_a) && on_cpu(out_b) && on_cpu(lse_a) && on_cpu(lse_b));
  require(same_shape(out_b, out_a, dims + 1) && same_shape(lse_a, out_a, dims) &&
          same_shape(lse_b, out_a, dims));
  require(is_float(out_a) && out_b.dtype() == out_a.dtype() && lse_a.dtype() == DType::f32 &&
          lse_b.dtype() == DType::f32 && dense_last(out_a) && dense_last(out_b));
  const MergeStates& kernels = pick(merge_states_generic, merge_states_avx2, merge_states_avx512);
  const MergeRow row = dispatch_float(out.dtype(), [&](auto t) {
    using T = decltype(t);
    return std::is_same_v<T, float>  ? kernels.f32
           : std::is_same_v<T, bf16> ? kernels.bf16
                                     : kernels.f16;
  });
  const int64_t rows = lse.numel(), d = out.size(dims), width = out.dtype() == DType::f32 ? 4 : 2;
  const Rows a(out_a, dims), b(out_b, dims), result(out, dims), a_lse(lse_a, dims),
      b_lse(lse_b, dims);
  const auto at = [&](const Rows& rows, int64_t i) {
    return rows.t.data<char>() + rows.offset(i) * width;
  };
  constexpr int64_t kRowsAnItem = 64;
  parallel_for((rows + kRowsAnItem - 1) / kRowsAnItem, threads, [&](int64_t item) {
    const int64_t end = std::min(rows, (item + 1) * kRowsAnItem);
    for (int64_t i = item * kRowsAnItem; i < end; ++i) {
      const MergeWeights w =
          merge_weights(lse_a.data<float>()[a_lse.offset(i)], lse_b.data<float>()[b_lse.offset(i)]);
      row(at(a, i), at(b, i), at(result, i), w, d);
      lse.data<float>()[i] = w.lse;
    }
  });
}

}  // namespace pyttc
