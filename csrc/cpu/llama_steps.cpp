// Steps of decoding in one call, while no row ends. Each step sweeps the caches, so that what
// Python does between two of them runs as if for the first time: a tenth of a step of a small
// model.
#include <vector>

#include "llama_pass.h"

namespace pyttc {
namespace {

// int64 [n], of its own.
struct Numbers {
  std::vector<int64_t> values;
  const View all;

  explicit Numbers(const Tensor& from)
      : values(copied(from)), all(in(values), 0, {from.size(0)}, {1}) {}

  static std::vector<int64_t> copied(const Tensor& from) {
    const Indices at(from);
    std::vector<int64_t> values(from.size(0));
    for (size_t i = 0; i < values.size(); ++i) values[i] = at.at(i);
    return values;
  }
  static Tensor in(std::vector<int64_t>& values) {
    Tensor t{};
    t.t.data = values.data();
    t.t.device = {dlpack::kCpu, 0};
    t.t.dtype = {dlpack::kInt, 64, 1};
    return t;
  }
};

// The n rows of an output from `first` on.
View rows_of(const Output& all, int64_t first, int64_t n) {
  if (all.t.ndim == 1) return {all, first, {n}, {1}};
  return {all, first * all.size(1), {n, all.size(1)}, {all.size(1), 1}};
}

}  // namespace

std::pair<int64_t, PassSeconds> llama_steps(
    const LlamaModel& model, const LinearLayer& head, const Tensor& tokens, const Tensor& positions,
    const TreeTensors& tree, int64_t steps, const Tensor& ends, const Whole& seed,
    const Tensor& path_ids, const Reals& temperature, const Whole& top_k, const Reals& top_p,
    const Reals& min_p, const OptionalTensor& mask, int64_t topk, const Output& hidden,
    const std::array<Output, 8>& drawn, int threads) {
  const auto& [parents, page_offsets, page_ids, node_lengths, node_of_row] = tree;
  require(has_shape(tokens, {kAny}) && has_shape(node_lengths, {kAny}) && steps >= 1);
  const int64_t rows = tokens.size(0), nodes = node_lengths.size(0), v = head.first.size(0);
  const int64_t page_size = std::get<6>(model).size(2);
  for (const Tensor* index : {&tokens, &positions, &node_of_row})
    require(fits_index(*index, {rows}));
  require(fits_index(node_lengths, {nodes}) && fits_index(page_offsets, {nodes + 1}) &&
          fits_index(page_ids, {kAny}) && fits(ends, DType::u8, {v}) &&
          drawn[0].size(0) == steps * rows);
  const bool* const may_end = ends.data<bool>();
  LlamaPass pass(model, rows);
  const Buffer logits(hidden, rows, v);
  Numbers now(tokens), at(positions), after(positions), slots(positions), lengths(node_lengths);
  const Indices offsets(page_offsets), pages(page_ids), leaves(node_of_row);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t leaf = leaves.at(i);
    require(leaf >= 0 && leaf < nodes);
    const int64_t first = offsets.at(leaf), last = offsets.at(leaf + 1);
    require(first >= 0 && last <= page_ids.size(0) &&
            (lengths.values[leaf] + page_size - 1) / page_size <= last - first);
    require((lengths.values[leaf] -= steps) >= 0);
  }
  const TreeTensors growing{parents, page_offsets, page_ids, lengths.all, node_of_row};

  for (int64_t step = 0;; ++step) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t leaf = leaves.at(i), offset = lengths.values[leaf]++;
      slots.values[i] =
          pages.at(offsets.at(leaf) + offset / page_size) * page_size + offset % page_size;
      ++after.values[i];
    }
    pass.run(now.all, at.all, slots.all, growing, hidden, threads);
    linear(hidden, head.first, head.second, logits.all, threads);
    pass.lap(kProducts);
    const auto out = [&](int i) { return rows_of(drawn[i], step * rows, rows); };
    const View token = out(0);
    sample(logits.all, seed, path_ids, after.all, temperature, top_k, top_p, min_p, mask, topk,
           token, out(1), out(2), out(3), out(4), out(5), out(6), out(7), threads);
    pass.lap(kDrawing);
    bool ended = step + 1 == steps;
    for (int64_t i = 0; i < rows; ++i) {
      now.values[i] = token.data<int64_t>()[i];
      at.values[i] = after.values[i];
      ended = ended || now.values[i] < 0 || may_end[now.values[i]];
    }
    if (ended) return {step + 1, pass.lap.seconds};
  }
}

}  // namespace pyttc
