// All layers of a Llama-shaped model over rows, in one call. A step of few rows is a hundred
// kernels that each sweep the caches; Python between them would run as if for the first time, every
// time.
#include "llama_pass.h"

#include <algorithm>
#include <cstring>

namespace pyttc {
namespace {

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

Tensor float32(Tensor like) {
  like.t.dtype = {dlpack::kFloat, 32, 1};
  return like;
}

}  // namespace

View::View(const Tensor& of, int64_t offset, std::initializer_list<int64_t> sizes,
           std::initializer_list<int64_t> steps)
    : Output{of} {
  std::copy(sizes.begin(), sizes.end(), shape.begin());
  std::copy(steps.begin(), steps.end(), strides.begin());
  t.byte_offset += offset * t.dtype.bits / 8;
  t.ndim = static_cast<int>(sizes.size());
  t.shape = shape.data();
  t.strides = strides.data();
}

LlamaPass::Widths::Widths(const LlamaModel& model) {
  const auto& [layers, embedding, last_norm, eps, cos, sin, k_pages, v_pages] = model;
  const int64_t depth = static_cast<int64_t>(layers.size());
  const DType dtype = embedding.dtype();
  require(fits(embedding, dtype, {kAny, kAny}) && depth > 0);
  for (const Tensor* pages : {&k_pages, &v_pages})
    require(fits(*pages, dtype, {depth, kAny, kAny, kAny, kAny}));
  for (const Tensor* turns : {&cos, &sin}) require(fits(*turns, dtype, {kAny, k_pages.size(4)}));
  hidden = embedding.size(1), dim = cos.size(1), kv_heads = k_pages.size(3);
  // All layers are as wide as the first.
  heads = std::get<1>(layers[0]).first.size(0) / dim - 2 * kv_heads;
  inner = std::get<4>(layers[0]).first.size(0) / 2;
  require(heads >= 1);
}

LlamaPass::LlamaPass(const LlamaModel& model, int64_t rows)
    : model_(model),
      widths_(model),
      rows_(rows),
      stream_(like(), rows, widths_.hidden),
      cosines_(like(), rows, widths_.dim),
      sines_(like(), rows, widths_.dim),
      normed_(like(), rows, widths_.hidden),
      added_(like(), rows, widths_.hidden),
      attended_(like(), rows, widths_.heads * widths_.dim),
      gate_up_(like(), rows, 2 * widths_.inner),
      qkv_(like(), rows, (widths_.heads + 2 * widths_.kv_heads) * widths_.dim),
      lse_(float32(like()), rows, widths_.heads) {}

void LlamaPass::run(const Tensor& tokens, const Tensor& positions, const Tensor& slots,
                    const TreeTensors& tree, const Output& out, int threads) {
  for (const Tensor* index : {&tokens, &positions}) require(fits(*index, DType::i64, {rows_}));
  const auto& [layers, embedding, last_norm, eps, cos, sin, k_pages, v_pages] = model_;
  const auto& [parents, page_offsets, page_ids, lengths, leaves] = tree;
  const auto [hidden, d, heads, kv_heads, inner] = widths_;
  const View &x = stream_.all, &normed = normed_.all, &added = added_.all;
  const View q = qkv_.heads(0, heads, d), k = qkv_.heads(heads, kv_heads, d);
  const View v = qkv_.heads(heads + kv_heads, kv_heads, d);
  const View turned = qkv_.heads(0, heads + kv_heads, d), out_heads = attended_.heads(0, heads, d);
  const View gate = gate_up_.columns(0, inner), up = gate_up_.columns(inner, inner);

  gather(embedding, "tokens", tokens, x);
  gather(cos, "positions", positions, cosines_.all);
  gather(sin, "positions", positions, sines_.all);
  OptionalTensor before;  // what the layer before adds
  for (size_t at = 0; at < layers.size(); ++at) {
    const auto& [norms, qkv_layer, head_norms, out_layer, gate_up_layer, down_layer, scale,
                 window] = layers[at];
    rms_norm(x, before, norms.first, eps, normed, threads);
    lap(kOtherLayers);
    linear(normed, qkv_layer.first, qkv_layer.second, qkv_.all, threads);
    lap(kProducts);
    if (head_norms) {
      rms_norm(q, std::nullopt, head_norms->first, eps, q, threads);
      rms_norm(k, std::nullopt, head_norms->second, eps, k, threads);
    }
    rotary(turned, cosines_.all, sines_.all, threads);
    lap(kOtherLayers);
    const View k_layer = layer_of(k_pages, at), v_layer = layer_of(v_pages, at);
    store_kv(k, v, k_layer, v_layer, slots, threads);
    prefix_tree_attention(q, k_layer, v_layer, parents, page_offsets, page_ids, lengths, leaves,
                          scale, window, std::nullopt, out_heads, lse_.all, threads);
    lap(kAttention);
    linear(attended_.all, out_layer.first, out_layer.second, added, threads);
    lap(kProducts);
    rms_norm(x, added, norms.second, eps, normed, threads);
    lap(kOtherLayers);
    linear(normed, gate_up_layer.first, gate_up_layer.second, gate_up_.all, threads);
    lap(kProducts);
    silu_mul(gate, up, gate, threads);
    lap(kOtherLayers);
    linear(gate, down_layer.first, down_layer.second, added, threads);
    lap(kProducts);
    before = added;
  }
  rms_norm(x, before, last_norm, eps, out, threads);
  lap(kOtherLayers);
}

PassSeconds llama_pass(const LlamaModel& model, const Tensor& tokens, const Tensor& positions,
                       const Tensor& slots, const TreeTensors& tree, const Output& out,
                       int threads) {
  require(tokens.t.ndim == 1);
  LlamaPass pass(model, tokens.size(0));
  pass.run(tokens, positions, slots, tree, out, threads);
  return pass.lap.seconds;
}

}  // namespace pyttc
