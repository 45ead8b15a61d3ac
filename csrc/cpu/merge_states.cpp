#include "merge_states.h"

#include "isa.h"
#include "module.h"
#include "parallel.h"

namespace pyttc {
namespace {

// Elements to skip to the i-th row of a tensor whose first `dims` dimensions number the rows.
int64_t row_offset(const Tensor& t, int dims, int64_t i) {
  int64_t offset = 0;
  for (int k = dims - 1; k >= 0; --k) {
    offset += i % t.size(k) * t.stride(k);
    i /= t.size(k);
  }
  return offset;
}

// out_a, out_b, out [..., D]; lse_a, lse_b, lse [...]
void merge_states(py::handle out_a_, py::handle lse_a_, py::handle out_b_, py::handle lse_b_,
                  py::handle out_, py::handle lse_, int threads) {
  const Tensor out_a(out_a_), lse_a(lse_a_), out_b(out_b_), lse_b(lse_b_), out(out_), lse(lse_);
  py::gil_scoped_release release;
  const MergeStates& kernels = pick(merge_states_generic, merge_states_avx2, merge_states_avx512);
  const MergeRow row = dispatch_float(out.dtype(), [&](auto t) {
    using T = decltype(t);
    return std::is_same_v<T, float> ? kernels.f32
           : std::is_same_v<T, bf16> ? kernels.bf16
                                     : kernels.f16;
  });
  const int dims = lse.t.ndim;
  const int64_t rows = lse.numel(), d = out.size(dims), width = out.dtype() == DType::f32 ? 4 : 2;
  const auto at = [&](const Tensor& t, int64_t i) {
    return t.data<char>() + row_offset(t, dims, i) * width;
  };
  constexpr int64_t kRowsAnItem = 64;
  parallel_for((rows + kRowsAnItem - 1) / kRowsAnItem, threads, [&](int64_t item) {
    const int64_t end = std::min(rows, (item + 1) * kRowsAnItem);
    for (int64_t i = item * kRowsAnItem; i < end; ++i) {
      const MergeWeights w = merge_weights(lse_a.data<float>()[row_offset(lse_a, dims, i)],
                                           lse_b.data<float>()[row_offset(lse_b, dims, i)]);
      row(at(out_a, i), at(out_b, i), at(out, i), w, d);
      lse.data<float>()[i] = w.lse;
    }
  });
}

}  // namespace

void bind_merge_states(py::module_& m) { m.def("merge_states", &merge_states); }

}  // namespace pyttc
