// All layers of a Llama-shaped model over rows, in one call. A step of few rows is a hundred
// kernels that each sweep the caches; Python between them would run as if for the first time, every
// time.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "ops.h"
#include "row_product.h"

namespace pyttc {
namespace {

// A part of a tensor, or of a buffer: shape and strides lie in it. From `offset` elements on.
struct View : Output {
  std::array<int64_t, 4> shape{}, strides{};

  View(const Tensor& of, int64_t offset, std::initializer_list<int64_t> sizes,
       std::initializer_list<int64_t> steps)
      : Output{of} {
    std::copy(sizes.begin(), sizes.end(), shape.begin());
    std::copy(steps.begin(), steps.end(), strides.begin());
    t.byte_offset += offset * t.dtype.bits / 8;
    t.ndim = static_cast<int>(sizes.size());
    t.shape = shape.data();
    t.strides = strides.data();
  }
  View(const View&) = delete;
};

// New memory [rows, width] for what is computed between the kernels.
struct Buffer {
  const CacheLines lines;
  const View all;

  Buffer(const Tensor& like, int64_t rows, int64_t width)
      : lines(
            new CacheLine[elements({rows, width, like.t.dtype.bits / 8}) / sizeof(CacheLine) + 1]),
        all(in(lines, like), 0, {rows, width}, {width, 1}) {}

  View columns(int64_t first, int64_t n) const {
    return {all, first, {all.size(0), n}, {all.size(1), 1}};
  }
  View heads(int64_t first, int64_t n, int64_t d) const {
    return {all, first * d, {all.size(0), n, d}, {all.size(1), d, 1}};
  }
  static Tensor in(const CacheLines& lines, Tensor like) {
    like.t.data = lines.get();
    like.t.byte_offset = 0;
    return like;
  }
};

View layer_of(const Tensor& pool, int64_t layer) {
  return {pool,
          layer * pool.stride(0),
          {pool.size(1), pool.size(2), pool.size(3), pool.size(4)},
          {pool.stride(1), pool.stride(2), pool.stride(3), pool.stride(4)}};
}

// The rows of a table at `index`, one after the other.
void gather(const Tensor& table, const char* name, const Tensor& index, const View& to) {
  const Indices at(index);
  const int64_t bytes = table.size(1) * table.t.dtype.bits / 8;
  const char* from = table.data<char>();
  for (int64_t i = 0; i < index.size(0); ++i) {
    const int64_t row = at.at(i);
    if (row < 0 || row >= table.size(0))
      fail(name, i, row, "0 to " + std::to_string(table.size(0) - 1));
    std::memcpy(to.data<char>() + i * bytes, from + row * bytes, bytes);
  }
}

class Stopwatch {
 public:
  // Ends a lap: its time goes to a part.
  void operator()(int part) {
    const auto now = std::chrono::steady_clock::now();
    seconds[part] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  PassSeconds seconds{};

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

PassSeconds llama_pass(const std::vector<LlamaLayer>& layers, const Tensor& embedding,
                       const Tensor& last_norm, double eps, const Tensor& tokens,
                       const Tensor& positions, const Tensor& cos, const Tensor& sin,
                       const Tensor& k_pages, const Tensor& v_pages, const Tensor& slots,
                       const Tensor& parents, const Tensor& page_offsets, const Tensor& page_ids,
                       const Tensor& lengths, const Tensor& leaves, const Output& out,
                       int threads) {
  const int64_t depth = static_cast<int64_t>(layers.size()), rows = tokens.size(0);
  const DType dtype = embedding.dtype();
  require(fits(embedding, dtype, {kAny, kAny}) && depth > 0);
  for (const Tensor* index : {&tokens, &positions}) require(fits(*index, DType::i64, {rows}));
  for (const Tensor* pages : {&k_pages, &v_pages})
    require(fits(*pages, dtype, {depth, kAny, kAny, kAny, kAny}));
  for (const Tensor* turns : {&cos, &sin}) require(fits(*turns, dtype, {kAny, k_pages.size(4)}));
  const int64_t hidden = embedding.size(1), d = cos.size(1), kv_heads = k_pages.size(3);
  // All layers are as wide as the first.
  const LinearLayer &wide_qkv = std::get<1>(layers[0]), &wide_gate_up = std::get<4>(layers[0]);
  const int64_t heads = wide_qkv.first.size(0) / d - 2 * kv_heads;
  const int64_t inner = wide_gate_up.first.size(0) / 2;
  require(heads >= 1);

  const Tensor& like = embedding;
  const Buffer stream(like, rows, hidden), cosines(like, rows, d), sines(like, rows, d);
  const Buffer normed(like, rows, hidden), added(like, rows, hidden);
  const Buffer attended(like, rows, heads * d), gate_up(like, rows, 2 * inner);
  const Buffer qkv(like, rows, (heads + 2 * kv_heads) * d);
  const View& x = stream.all;
  Tensor f32 = like;
  f32.t.dtype = {dlpack::kFloat, 32, 1};
  const Buffer lse(f32, rows, heads);
  const View q = qkv.heads(0, heads, d), k = qkv.heads(heads, kv_heads, d);
  const View v = qkv.heads(heads + kv_heads, kv_heads, d);
  const View turned = qkv.heads(0, heads + kv_heads, d), out_heads = attended.heads(0, heads, d);
  const View gate = gate_up.columns(0, inner), up = gate_up.columns(inner, inner);

  Stopwatch lap;
  gather(embedding, "tokens", tokens, x);
  gather(cos, "positions", positions, cosines.all);
  gather(sin, "positions", positions, sines.all);
  OptionalTensor before;  // what the layer before adds
  for (int64_t at = 0; at < depth; ++at) {
    const auto& [norms, qkv_layer, head_norms, out_layer, gate_up_layer, down_layer, scale,
                 window] = layers[at];
    rms_norm(x, before, norms.first, eps, normed.all, threads);
    lap(kOtherLayers);
    linear(normed.all, qkv_layer.first, qkv_layer.second, qkv.all, threads);
    lap(kProducts);
    if (head_norms) {
      rms_norm(q, std::nullopt, head_norms->first, eps, q, threads);
      rms_norm(k, std::nullopt, head_norms->second, eps, k, threads);
    }
    rotary(turned, cosines.all, sines.all, threads);
    lap(kOtherLayers);
    const View k_layer = layer_of(k_pages, at), v_layer = layer_of(v_pages, at);
    store_kv(k, v, k_layer, v_layer, slots, threads);
    prefix_tree_attention(q, k_layer, v_layer, parents, page_offsets, page_ids, lengths, leaves,
                          scale, window, std::nullopt, out_heads, lse.all, threads);
    lap(kAttention);
    linear(attended.all, out_layer.first, out_layer.second, added.all, threads);
    lap(kProducts);
    rms_norm(x, added.all, norms.second, eps, normed.all, threads);
    lap(kOtherLayers);
    linear(normed.all, gate_up_layer.first, gate_up_layer.second, gate_up.all, threads);
    lap(kProducts);
    silu_mul(gate, up, gate, threads);
    lap(kOtherLayers);
    linear(gate, down_layer.first, down_layer.second, added.all, threads);
    lap(kProducts);
    before = added.all;
  }
  rms_norm(x, before, last_norm, eps, out, threads);
  lap(kOtherLayers);
  return lap.seconds;
}

}  // namespace pyttc
