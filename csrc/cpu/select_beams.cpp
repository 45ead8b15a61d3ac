// Bound by reading logprobs once. A row's keys are computed a block at a time, in loops the
// compiler vectorises, and compared with a key that `width` candidates already reach; only what
// reaches it too is looked at further, its token included. The order of candidates is strict, so
// how rows fall to work items and threads cannot show in the result.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "fits.h"
#include "ops.h"
#include "parallel.h"

namespace pyttc {
namespace {

constexpr int64_t kBlock = 64, kCandidatesAnItem = 1 << 15, kCandidatesAThread = 1 << 14;

struct Candidate {
  float key, score;
  int64_t parent, token, column;
};

bool better(const Candidate& a, const Candidate& b) {
  if (a.key != b.key) return a.key > b.key;
  if (a.parent != b.parent) return a.parent < b.parent;
  return a.token != b.token ? a.token < b.token : a.column < b.column;
}

// The best `width` of the candidates pushed. Up to twice as many are kept, so that cutting back to
// `width` costs each candidate a constant.
struct Best {
  size_t width;
  float reach = -FLT_MAX;  // a key that `width` candidates have or exceed
  std::vector<Candidate> kept = {};

  size_t room() const { return width + std::max<size_t>(width, 64); }
  void reserve(size_t candidates) { kept.reserve(std::min(candidates, room())); }
  void push(const Candidate& c) {
    kept.push_back(c);
    if (kept.size() < room()) return;
    cut();
    reach = std::min_element(kept.begin(), kept.end(), [](auto& a, auto& b) {
              return a.key < b.key;
            })->key;
  }
  void cut() {
    if (kept.size() <= width) return;
    std::nth_element(kept.begin(), kept.begin() + width, kept.end(), better);
    kept.resize(width);
  }
};

struct Children {
  const float *logprobs, *bonus;  // bonus may be null
  float score, row_bonus, norm;
  Indices tokens;
  int64_t row;

  void keys(int64_t at, int64_t n, float* cumulative, float* key) const {
    for (int64_t j = 0; j < n; ++j) cumulative[j] = score + logprobs[at + j];
    for (int64_t j = 0; j < n; ++j) key[j] = cumulative[j] + (bonus ? bonus[at + j] : row_bonus);
    if (norm != 1.f)
      for (int64_t j = 0; j < n; ++j) key[j] /= norm;
  }
  void push(int64_t k, Best& best) const {
    float cumulative[kBlock], key[kBlock];
    for (int64_t at = 0; at < k; at += kBlock) {
      const int64_t n = std::min(kBlock, k - at);
      keys(at, n, cumulative, key);
      int any = 0;
      for (int64_t j = 0; j < n; ++j) any |= key[j] >= best.reach;
      if (!any) continue;
      for (int64_t j = 0; j < n; ++j) {
        if (!(key[j] >= best.reach && key[j] <= FLT_MAX)) continue;
        const int64_t token = tokens.at(row, at + j);
        if (token >= 0) best.push({key[j], cumulative[j], row, token, at + j});
      }
    }
  }
};

struct Item {
  int64_t begin, end;  // in the rows ordered by group
};

}  // namespace

// scores [R]; logprobs, tokens [R, k]; groups [R]; bonus None, [R] or [R, k]; length None or [R];
// parents, best_tokens, best_scores [G, width]
void select_beams(const Tensor& scores, const Tensor& logprobs, const Tensor& tokens,
                  const Tensor& groups_tensor, int64_t width, const OptionalTensor& bonus_tensor,
                  const OptionalTensor& length_tensor, double length_penalty, const Output& parents,
                  const Output& best_tokens, const Output& best_scores, int threads) {
  require(has_shape(scores, {kAny}) && has_shape(logprobs, {scores.size(0), kAny}));
  const int64_t rows = scores.size(0), k = logprobs.size(1), groups = parents.size(0);
  require(on_cpu(scores) && scores.dtype() == DType::f32 && fits(logprobs, DType::f32, {rows, k}) &&
          fits_index(tokens, {rows, k}) && dense_last(tokens) &&
          fits_index(groups_tensor, {rows}) && width >= 1);
  require(!bonus_tensor || fits(*bonus_tensor, DType::f32, {rows, k}) ||
          (has_shape(*bonus_tensor, {rows}) && on_cpu(*bonus_tensor) &&
           bonus_tensor->dtype() == DType::f32));
  require(!length_tensor || fits_index(*length_tensor, {rows}));
  require(std::isfinite(length_penalty) && (length_penalty == 0 || length_tensor));
  const bool has_bonus = bonus_tensor.has_value(), has_length = length_tensor.has_value();
  const Tensor &bonus = has_bonus ? *bonus_tensor : scores,
               &length = has_length ? *length_tensor : groups_tensor;
  const Indices group(groups_tensor), lengths(length), token(tokens);
  const bool divide = has_length && length_penalty != 0.0, each = has_bonus && bonus.t.ndim == 2;

  std::vector<int64_t> first(groups + 1), order(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t g = group.at(r);
    if (g < 0 || g >= groups)
      fail("groups", r, g, "a group from 0 to num_groups - 1 = " + std::to_string(groups - 1));
    if (has_length && lengths.at(r) < 1) fail("length", r, lengths.at(r), "a length of at least 1");
    ++first[g + 1];
  }
  for (int64_t g = 0; g < groups; ++g) first[g + 1] += first[g];
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t r = 0; r < rows; ++r) order[next[group.at(r)]++] = r;

  std::vector<Item> items;
  std::vector<int64_t> first_item(groups + 1);
  const int64_t least = std::max<int64_t>(1, kCandidatesAnItem / std::max<int64_t>(k, 1));
  for (int64_t g = 0; g < groups; ++g) {
    // As few items as there are threads: each has to find its own bound.
    const int64_t rows_an_item = std::max(least, (first[g + 1] - first[g] + threads - 1) / threads);
    for (int64_t r = first[g]; r < first[g + 1]; r += rows_an_item)
      items.push_back({r, std::min(first[g + 1], r + rows_an_item)});
    first_item[g + 1] = items.size();
  }

  if (rows * k < kCandidatesAThread) threads = 1;
  std::vector<Best> best(items.size(), Best{static_cast<size_t>(width)});
  parallel_for(items.size(), threads, [&](int64_t i) {
    best[i].reserve((items[i].end - items[i].begin) * k);
    for (int64_t at = items[i].begin; at < items[i].end; ++at) {
      const int64_t r = order[at];
      const float* row_bonus = has_bonus ? bonus.data<float>() + r * bonus.stride(0) : nullptr;
      const Children children{
          logprobs.data<float>() + r * logprobs.stride(0),
          each ? row_bonus : nullptr,
          scores.data<float>()[r * scores.stride(0)],
          row_bonus && !each ? *row_bonus : 0.f,
          divide ? static_cast<float>(std::pow(static_cast<double>(lengths.at(r)), length_penalty))
                 : 1.f,
          token,
          r};
      children.push(k, best[i]);
    }
  });
  parallel_for(groups, threads, [&](int64_t g) {
    Best all{static_cast<size_t>(width)};
    const int64_t begin = first_item[g];
    if (begin < first_item[g + 1]) all.kept.swap(best[begin].kept);
    for (int64_t i = begin + 1; i < first_item[g + 1]; ++i)
      all.kept.insert(all.kept.end(), best[i].kept.begin(), best[i].kept.end());
    all.cut();
    std::sort(all.kept.begin(), all.kept.end(), better);
    const int64_t found = all.kept.size();
    for (int64_t j = 0; j < width; ++j) {
      const Candidate c = j < found ? all.kept[j] : Candidate{0.f, -INFINITY, -1, -1, 0};
      parents.data<int64_t>()[g * width + j] = c.parent;
      best_tokens.data<int64_t>()[g * width + j] = c.token;
      best_scores.data<float>()[g * width + j] = c.score;
    }
  });
}

}  // namespace pyttc
