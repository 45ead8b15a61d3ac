#include <cmath>

#include "attention.h"
#include "ops.h"

namespace pyttc {

void prefix_tree_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& parents_tensor, const Tensor& page_offsets,
                           const Tensor& ids, const Tensor& node_lengths,
                           const Tensor& leaves_tensor, std::optional<double> scale,
                           std::optional<int64_t> window, std::optional<double> softcap,
                           const Output& out, const Output& lse, int threads) {
  require(has_shape(q, {kAny, kAny, kAny}) && has_shape(k, {kAny, kAny, kAny, kAny}) &&
          has_shape(node_lengths, {kAny}));
  const DType dtype = q.dtype();
  const int64_t paths = q.size(0), heads = q.size(1), d = q.size(2), nodes = node_lengths.size(0);
  const int64_t pool = k.size(0), page_size = k.size(1), kv_heads = k.size(2);
  require_heads(heads, kv_heads, d);
  require(is_float(q) && fits(q, dtype, {paths, heads, d}) &&
          fits(k, dtype, {pool, page_size, kv_heads, d}) &&
          fits(v, dtype, {pool, page_size, kv_heads, d}) && page_size >= 1 && page_size <= 256);
  require(fits_index(node_lengths, {nodes}) && fits_index(parents_tensor, {nodes}) &&
          fits_index(page_offsets, {nodes + 1}) && fits_index(ids, {kAny}) &&
          fits_index(leaves_tensor, {paths}));
  require(std::isfinite(scale.value_or(1)) && window.value_or(1) >= 1 &&
          std::isfinite(softcap.value_or(1)) && softcap.value_or(1) > 0);
  const Indices parents{parents_tensor}, offsets{page_offsets}, lengths{node_lengths},
      leaves{leaves_tensor};
  const int64_t listed = ids.size(0);
  const int64_t width = dtype == DType::f32 ? 4 : 2;

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
  call.dtype = dtype;
  call.paths = paths;
  call.heads = heads;
  call.kv_heads = kv_heads;
  call.dim = d;
  call.q = q.data<char>();
  call.inner = 1;
  call.q_outer = q.stride(0) * width;
  call.q_inner = 0;
  call.q_head = q.stride(1) * width;
  call.out = out.data<char>();
  call.lse = lse.data<float>();
  call.scale = static_cast<float>(scale.value_or(1 / std::sqrt(d)));
  call.window = window.value_or(INT64_MAX);
  call.softcap = static_cast<float>(softcap.value_or(0));
  call.threads = threads;
  attention(call);
}

}  // namespace pyttc
