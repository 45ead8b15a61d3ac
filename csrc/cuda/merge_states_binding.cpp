#include "merge_states.h"

#include "module.h"

namespace pyttc {
namespace {

void merge_states(py::handle out_a_, py::handle lse_a_, py::handle out_b_, py::handle lse_b_,
                  py::handle out_, py::handle lse_) {
  const Tensor out_a(out_a_), lse_a(lse_a_), out_b(out_b_), lse_b(lse_b_), out(out_), lse(lse_);
  MergeStatesParams p{out_a.data<void>(), out_b.data<void>(), lse_a.data<float>(),
                      lse_b.data<float>(), out.data<void>(),  lse.data<float>()};
  p.dims = lse.t.ndim;
  p.rows = lse.numel();
  p.d = out.size(p.dims);
  for (int k = 0; k < p.dims; ++k) {
    p.size[k] = lse.size(k);
    p.out_a_stride[k] = out_a.stride(k);
    p.out_b_stride[k] = out_b.stride(k);
    p.lse_a_stride[k] = lse_a.stride(k);
    p.lse_b_stride[k] = lse_b.stride(k);
  }
  Launch launch(out);
  check_cuda(merge_states_cuda(p, float_of(out), launch.stream));
}

}  // namespace

void bind_merge_states(py::module_& m) { m.def("merge_states", &merge_states); }

}  // namespace pyttc
