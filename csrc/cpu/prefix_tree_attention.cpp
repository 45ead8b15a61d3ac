#include "attention.h"
#include "module.h"

namespace pyttc {
namespace {

void prefix_tree_attention(py::handle q_, py::handle k_pages_, py::handle v_pages_,
                           py::handle parents_, py::handle page_offsets_, py::handle page_ids_,
                           py::handle lengths_, py::handle leaves_, double scale, int64_t window,
                           double softcap, py::handle out_, py::handle lse_, int threads) {
  const Tensor q(q_), k(k_pages_), v(v_pages_), out(out_), lse(lse_), ids(page_ids_),
      node_lengths(lengths_);
  const Indices parents{Tensor(parents_)}, offsets{Tensor(page_offsets_)}, lengths{node_lengths},
      leaves{Tensor(leaves_)};
  const int64_t nodes = node_lengths.size(0), paths = q.size(0), pool = k.size(0);
  const int64_t page_size = k.size(1), listed = ids.size(0);
  const int64_t width = q.dtype() == DType::f32 ? 4 : 2;
  py::gil_scoped_release release;

  KvLayout layout;
  layout.k_page = k.stride(0) * width;
  layout.k_token = k.stride(1) * width;
  layout.k_head = k.stride(2) * width;
  layout.v_page = v.stride(0) * width;
  layout.v_token = v.stride(1) * width;
  layout.v_head = v.stride(2) * width;
  layout.page_size = page_size;
  layout.pages = Indices(ids);

  Attention call;
  call.nodes.resize(nodes);
  for (int64_t i = 0; i < nodes; ++i) {
    const int64_t parent = parents.at(i), length = lengths.at(i), first = offsets.at(i);
    if (parent < -1 || parent >= nodes)
      fail("parents", i, parent, "-1 for a root, or a node, 0 to " + std::to_string(nodes - 1));
    if (first < 0 || first > listed)
      fail("page_offsets", i, first, "0 to " + std::to_string(listed) + ", the pages listed");
    const int64_t last = offsets.at(i + 1);
    if (last < first || last > listed)
      fail("page_offsets", i + 1, last,
           std::to_string(first) + " to " + std::to_string(listed) + ", ascending");
    if (length < 0 || (length > 0 && (length - 1) / page_size >= last - first))
      fail("lengths", i, length,
           "0 to " + std::to_string((last - first) * page_size) + ", what the node's pages hold");
    for (int64_t j = first; j < first + (length + page_size - 1) / page_size; ++j)
      if (layout.pages.at(j) < 0 || layout.pages.at(j) >= pool)
        fail("page_ids", j, layout.pages.at(j), "a page, 0 to " + std::to_string(pool - 1));
    call.nodes[i] = {parent, length, k.data<char>(), v.data<char>(), first, &layout};
  }
  call.leaves.resize(paths);
  for (int64_t i = 0; i < paths; ++i) {
    call.leaves[i] = leaves.at(i);
    if (call.leaves[i] < -1 || call.leaves[i] >= nodes)
      fail("leaves", i, call.leaves[i],
           "a node, 0 to " + std::to_string(nodes - 1) + ", or -1 for an empty path");
  }
  call.dtype = q.dtype();
  call.paths = paths;
  call.heads = q.size(1);
  call.kv_heads = k.size(2);
  call.dim = q.size(2);
  call.q = q.data<char>();
  call.inner = 1;
  call.q_outer = q.stride(0) * width;
  call.q_inner = 0;
  call.q_head = q.stride(1) * width;
  call.out = out.data<char>();
  call.lse = lse.data<float>();
  call.scale = static_cast<float>(scale);
  call.window = window;
  call.softcap = static_cast<float>(softcap);
  call.threads = threads;
  attention(call);
}

}  // namespace

void bind_prefix_tree_attention(py::module_& m) {
  m.def("prefix_tree_attention", &prefix_tree_attention);
}

}  // namespace pyttc
