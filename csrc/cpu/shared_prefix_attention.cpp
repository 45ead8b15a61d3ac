#include "attention.h"
#include "module.h"

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

// A forest of one root a group, its prefix, with one child a path, its suffix.
void shared_prefix_attention(py::handle q_, py::handle k_prefix_, py::handle v_prefix_,
                             py::handle k_suffix_, py::handle v_suffix_, py::handle suffix_lens_,
                             py::object prefix_lens_, double scale, py::handle out_,
                             py::handle lse_, int threads) {
  const Tensor q(q_), k_prefix(k_prefix_), v_prefix(v_prefix_), k_suffix(k_suffix_),
      v_suffix(v_suffix_), out(out_), lse(lse_);
  const Indices suffix_lens{Tensor(suffix_lens_)};
  const bool ragged = !prefix_lens_.is_none();
  const Indices prefix_lens = ragged ? Indices(Tensor(prefix_lens_)) : Indices();
  const int64_t groups = q.size(0), paths = q.size(1), p = k_prefix.size(1), s = k_suffix.size(2);
  const int64_t width = q.dtype() == DType::f32 ? 4 : 2;
  py::gil_scoped_release release;

  const KvLayout prefix = layout_of(k_prefix, v_prefix, width);
  const KvLayout suffix = layout_of(k_suffix, v_suffix, width);
  Attention call;
  call.nodes.reserve(groups * (paths + 1));
  call.leaves.resize(groups * paths);
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
  call.dtype = q.dtype();
  call.paths = groups * paths;
  call.heads = q.size(2);
  call.kv_heads = k_prefix.size(2);
  call.dim = q.size(3);
  call.q = q.data<char>();
  call.inner = paths;
  call.q_outer = q.stride(0) * width;
  call.q_inner = q.stride(1) * width;
  call.q_head = q.stride(2) * width;
  call.out = out.data<char>();
  call.lse = lse.data<float>();
  call.scale = static_cast<float>(scale);
  call.threads = threads;
  attention(call);
}

}  // namespace

void bind_shared_prefix_attention(py::module_& m) {
  m.def("shared_prefix_attention", &shared_prefix_attention);
}

}  // namespace pyttc
