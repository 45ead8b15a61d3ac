#include <cmath>

#include "attention.h"
#include "ops.h"

namespace pyttc {
namespace {

KvLayout layout_of(const Tensor& k, const Tensor& v, int64_t width) {
  const int dims = k.t.ndim;  // [..., tokens, kv heads, dim]
  KvLayout layout;
  layout.k_page = layout.v_page = 0;
  layout.k_token = k.stride(dims - 3) * width;
  layout.k_head = k.stride(dims - 2) * width;
  layout.v_token = v.stride(dims - 3) * width;
  layout.v_head = v.stride(dims - 2) * width;
  return layout;
}

}  // namespace

// A forest of one root a group, its prefix, with one child a path, its suffix.
void shared_prefix_attention(const Tensor& q, const Tensor& k_prefix, const Tensor& v_prefix,
                             const Tensor& k_suffix, const Tensor& v_suffix,
                             const Tensor& suffix_lens_tensor,
                             const OptionalTensor& prefix_lens_tensor, std::optional<double> scale,
                             const Output& out, const Output& lse, int threads) {
  require(has_shape(q, {kAny, kAny, kAny, kAny}) && has_shape(k_prefix, {kAny, kAny, kAny, kAny}) &&
          has_shape(k_suffix, {kAny, kAny, kAny, kAny, kAny}));
  const DType dtype = q.dtype();
  const int64_t groups = q.size(0), paths = q.size(1), heads = q.size(2), d = q.size(3);
  const int64_t p = k_prefix.size(1), s = k_suffix.size(2), kv_heads = k_prefix.size(2);
  require_heads(heads, kv_heads, d);
  require(is_float(q) && fits(q, dtype, {groups, paths, heads, d}) &&
          fits(k_prefix, dtype, {groups, p, kv_heads, d}) &&
          fits(v_prefix, dtype, {groups, p, kv_heads, d}) &&
          fits(k_suffix, dtype, {groups, paths, s, kv_heads, d}) &&
          fits(v_suffix, dtype, {groups, paths, s, kv_heads, d}) &&
          fits_index(suffix_lens_tensor, {groups, paths}) &&
          (!prefix_lens_tensor || fits_index(*prefix_lens_tensor, {groups})) &&
          std::isfinite(scale.value_or(1)));
  const Indices suffix_lens{suffix_lens_tensor};
  const bool ragged = prefix_lens_tensor.has_value();
  const Indices prefix_lens = ragged ? Indices(*prefix_lens_tensor) : Indices();
  const int64_t width = dtype == DType::f32 ? 4 : 2;

  const KvLayout prefix = layout_of(k_prefix, v_prefix, width);
  const KvLayout suffix = layout_of(k_suffix, v_suffix, width);
  Attention call;
  call.nodes.reserve(groups * (paths + 1));
  call.leaves.resize(elements({groups, paths}));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t length = ragged ? prefix_lens.at(g) : p, root = call.nodes.size();
    if (length < 0 || length > p)
      fail("prefix_lens", g, length, "0 to " + std::to_string(p) + ", k_prefix's tokens");
    call.nodes.push_back({-1, length, k_prefix.data<char>() + g * k_prefix.stride(0) * width,
                          v_prefix.data<char>() + g * v_prefix.stride(0) * width, 0, &prefix});
    for (int64_t n = 0; n < paths; ++n) {
      const int64_t tokens = suffix_lens.at(g, n);
      if (tokens < 0 || tokens > s)
        fail("suffix_lens", g * paths + n, tokens,
             "0 to " + std::to_string(s) + ", k_suffix's tokens");
      const int64_t k = g * k_suffix.stride(0) + n * k_suffix.stride(1);
      const int64_t v = g * v_suffix.stride(0) + n * v_suffix.stride(1);
      call.leaves[g * paths + n] = call.nodes.size();
      call.nodes.push_back({root, tokens, k_suffix.data<char>() + k * width,
                            v_suffix.data<char>() + v * width, 0, &suffix});
    }
  }
  call.dtype = dtype;
  call.paths = groups * paths;
  call.heads = heads;
  call.kv_heads = kv_heads;
  call.dim = d;
  call.q = q.data<char>();
  call.inner = paths;
  call.q_outer = q.stride(0) * width;
  call.q_inner = q.stride(1) * width;
  call.q_head = q.stride(2) * width;
  call.out = out.data<char>();
  call.lse = lse.data<float>();
  call.scale = static_cast<float>(scale.value_or(1 / std::sqrt(d)));
  call.threads = threads;
  attention(call);
}

}  // namespace pyttc
