#include "attention.h"
#include "ops.h"

namespace pyttc {

void prefix_tree_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& parents_tensor, const Tensor& page_offsets,
                           const Tensor& ids, const Tensor& node_lengths,
                           const Tensor& leaves_tensor, double scale, int64_t window,
                           double softcap, const Tensor& out, const Tensor& lse, int threads) {
  const Indices parents{parents_tensor}, offsets{page_offsets}, lengths{node_lengths},
      leaves{leaves_tensor};
  const int64_t nodes = node_lengths.size(0), paths = q.size(0), pool = k.size(0);
  const int64_t page_size = k.size(1), listed = ids.size(0);
  const int64_t width = q.dtype() == DType::f32 ? 4 : 2;

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

}  // namespace pyttc
