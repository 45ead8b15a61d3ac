// pyttc._cuda: the CUDA kernels. As in pyttc._C, shapes, dtypes and strides were checked in pyttc/ops.
#include "module.h"

PYBIND11_MODULE(PYTTC_MODULE, m) {
  using namespace pyttc;
  m.def("bind_torch", &bind_torch);
  m.attr("archs") = PYTTC_ARCHS;
  bind_merge_states(m);
}
