// pyttc._C: the native CPU kernels. pyttc/ops holds each op's definition; the functions here take
// tensors whose shapes, dtypes and strides were checked there, and outputs to fill.
#include "module.h"

#include "isa.h"
#include "philox.h"

PYBIND11_MODULE(_C, m) {
  using namespace pyttc;
  m.def("bind_torch", &bind_torch);
  m.def("isa", [] { return isa_name(isa()); });
  m.def("isa_of_machine", [] { return isa_name(isa_of_machine()); });
  m.def("philox", [](uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    const Philox r = philox(key, c0, c1, c2, c3);
    return py::make_tuple(r.word[0], r.word[1], r.word[2], r.word[3]);
  });
  bind_copy_pages(m);
  bind_merge_states(m);
  bind_prefix_tree_attention(m);
  bind_shared_prefix_attention(m);
  bind_select_beams(m);
  bind_store_kv(m);
}
