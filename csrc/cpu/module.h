// One bind_<op> a file: each adds its op's function to the module.
#pragma once
#include "tensor.h"

namespace pyttc {

void bind_copy_pages(py::module_& m);
void bind_merge_states(py::module_& m);
void bind_prefix_tree_attention(py::module_& m);
void bind_shared_prefix_attention(py::module_& m);
void bind_select_beams(py::module_& m);
void bind_store_kv(py::module_& m);

}  // namespace pyttc
