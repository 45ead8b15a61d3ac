#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"
#include "ops.h"
#include "sampling.h"

namespace pyttc {
namespace {

// A word of the counter of each row.
std::vector<uint32_t> counter_words(const char* name, const Tensor& t) {
  const Indices values(t);
  std::vector<uint32_t> words(t.size(0));
  int64_t all = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    const int64_t value = values.at(i);
    all |= value;
    words[i] = static_cast<uint32_t>(value);
  }
  if (all >> 32)
    for (size_t i = 0; i < words.size(); ++i)
      if (values.at(i) >> 32) fail(name, i, values.at(i), std::string("0 <= ") + name + " < 2**32");
  return words;
}

[[noreturn]] void fail_real(const char* name, int64_t i, double got, const char* expected) {
  throw std::invalid_argument(std::string(name) + ": element " + std::to_string(i) + " is " +
                              std::to_string(got) + ", expected " + expected);
}

}  // namespace

SampleParameters::SampleParameters(const Whole& seed, const Tensor& path_ids,
                                   const Tensor& positions, const Reals& temperature,
                                   const Whole& top_k, const Reals& top_p, const Reals& min_p,
                                   const OptionalTensor& mask)
    : path_ids(counter_words("path_ids", path_ids)),
      positions(counter_words("positions", positions)),
      seed(seed),
      top_k(top_k),
      temperature(temperature),
      top_p(top_p),
      min_p(min_p),
      mask(mask ? mask->data<int32_t>() : nullptr),
      mask_stride(mask ? mask->stride(0) : 0) {}

void SampleParameters::check(int64_t rows) const {
  require(seed.serves(rows) && temperature.serves(rows) && top_k.serves(rows) &&
          top_p.serves(rows) && min_p.serves(rows));
  for (int64_t i = 0; i < (numbers() ? 1 : rows); ++i) {
    const int64_t key = seed.at(i);
    const double t = temperature.at(i), p = top_p.at(i), m = min_p.at(i);
    if (key < 0) fail("seed", i, key, "0 <= seed < 2**63");
    if (!(t >= 0 && t < INFINITY)) fail_real("temperature", i, t, "a finite number >= 0");
    if (!(p >= 0 && p <= 1)) fail_real("top_p", i, p, "0 <= top_p <= 1");
    if (!(m >= 0 && m <= 1)) fail_real("min_p", i, m, "0 <= min_p <= 1");
  }
}

bool SampleParameters::same(int64_t i, int64_t j, int64_t v) const {
  return (numbers() || (temperature.at(i) == temperature.at(j) && top_k.at(i) == top_k.at(j) &&
                        top_p.at(i) == top_p.at(j) && min_p.at(i) == min_p.at(j))) &&
         (!mask || !mask_stride ||
          !std::memcmp(mask + i * mask_stride, mask + j * mask_stride, (v + 31) / 32 * 4));
}

Filters SampleParameters::filters(int64_t i, int64_t v) const {
  Filters filters;
  if (mask) filters.mask = mask + i * mask_stride;
  const int64_t k = top_k.at(i);
  filters.top_k = greedy(i) ? 1 : k > 0 && k < v ? k : 0;
  filters.top_p = top_p.at(i);
  filters.min_p = min_p.at(i);
  return filters;
}

SampleOutputs::SampleOutputs(const Tensor& tokens, const Tensor& logprobs, const Tensor& processed,
                             const Tensor& kept_mass, const Tensor& entropy, const Tensor& valid,
                             const Tensor& topk_logprobs, const Tensor& topk_indices, int64_t topk)
    : tokens(tokens.data<int64_t>()),
      logprobs(logprobs.data<float>()),
      processed(processed.data<float>()),
      kept_mass(kept_mass.data<float>()),
      entropy(entropy.data<float>()),
      valid(valid.data<uint8_t>()),
      topk_logprobs(topk_logprobs.data<float>()),
      topk_indices(topk_indices.data<int64_t>()),
      topk(topk) {}

namespace {

void draw(const SampleParameters& parameters, int64_t begin, int64_t end, Kept& kept,
          int64_t* tokens) {
  std::vector<uint64_t> seeds(end - begin);
  for (int64_t i = begin; i < end; ++i) seeds[i - begin] = parameters.seed.at(i);
  std::vector<double> u(end - begin);
  pick(uniforms_generic, uniforms_avx2, uniforms_avx512)(
      seeds.data(), parameters.path_ids.data() + begin, parameters.positions.data() + begin,
      end - begin, u.data());
  kept.draw(u.data(), end - begin, tokens + begin);
}

}  // namespace

void finish_sample(const Row& row, const ScannedRow& raw, const ScannedRow* masked,
                   const SampleParameters& parameters, const SampleOutputs& out, int64_t begin,
                   int64_t end, int threads) {
  static thread_local Kept kept;
  const Scale scale = parameters.scale(begin);
  const Filters filters = parameters.filters(begin, row.v);
  if (out.topk)
    write_best(row, raw, scale, out.topk, out.topk_logprobs + begin * out.topk,
               out.topk_indices + begin * out.topk);
  const bool something = !raw.invalid && raw.totals.sum > 0;
  const bool any = something && kept.find(row, raw, masked, scale, filters, threads);
  if (any) draw(parameters, begin, end, kept, out.tokens);
  const bool all = any && !filters.mask && !filters.any();
  const double kept_mass = all || !any ? 0 : std::min(0., kLn2 * kept.log2_share(raw.totals));
  for (int64_t i = begin; i < end; ++i) {
    out.entropy[i] = something ? raw.entropy() : 0;
    if (i > begin && out.topk) {
      std::copy_n(out.topk_logprobs + begin * out.topk, out.topk, out.topk_logprobs + i * out.topk);
      std::copy_n(out.topk_indices + begin * out.topk, out.topk, out.topk_indices + i * out.topk);
    }
    if (!any) {
      out.tokens[i] = -1;
      out.logprobs[i] = out.processed[i] = out.kept_mass[i] = -INFINITY;
      out.valid[i] = 0;
      continue;
    }
    const double logprob = kLn2 * raw.totals.log2_probability(row.at(out.tokens[i]), scale);
    out.logprobs[i] = static_cast<float>(logprob);
    out.processed[i] = static_cast<float>(std::min(0., logprob - kept_mass));
    out.kept_mass[i] = static_cast<float>(kept_mass);
    out.valid[i] = 1;
  }
}

// logits [B, V]; mask [B, ceil(V / 32)] or None; parameters numbers or [B]; outputs [B] and [B,
// topk]
void sample(const Tensor& logits, const Whole& seed, const Tensor& path_ids,
            const Tensor& positions, const Reals& temperature, const Whole& top_k,
            const Reals& top_p, const Reals& min_p, const OptionalTensor& mask, int64_t topk,
            const Output& tokens, const Output& logprobs, const Output& processed,
            const Output& kept_mass, const Output& entropy, const Output& valid,
            const Output& topk_logprobs, const Output& topk_indices, int threads) {
  require_logits(logits);
  require_drawing(logits.size(0), logits.size(1), path_ids, positions, mask, topk);
  const SampleParameters parameters(seed, path_ids, positions, temperature, top_k, top_p, min_p,
                                    mask);
  const SampleOutputs out(tokens, logprobs, processed, kept_mass, entropy, valid, topk_logprobs,
                          topk_indices, topk);
  const int64_t rows = logits.size(0), v = logits.size(1);
  const int64_t width = logits.dtype() == DType::f32 ? 4 : 2, row_bytes = logits.stride(0) * width;
  const auto data = [&](int64_t i) { return logits.data<char>() + i * row_bytes; };
  parameters.check(rows);
  // Rows that are the same as the one before them share its scan.
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < rows; ++i)
    if (i == 0 || (row_bytes && std::memcmp(data(i), data(i - 1), v * width)) ||
        !parameters.same(i, i - 1, v))
      starts.push_back(i);
  const int64_t n = starts.size();
  starts.push_back(rows);
  parallel_rows(n, threads, [&](int64_t item, int threads_of_row) {
    static thread_local ScannedRow raw, allowed;
    const int64_t begin = starts[item];
    const Row row(logits.dtype(), data(begin), v);
    const Scale scale = parameters.scale(begin);
    const Filters filters = parameters.filters(begin, v);
    const int64_t candidates = candidates_of(filters);
    bool known = false;
    if (filters.mask)
      known = raw.scan_both(row, filters.mask, scale, topk, allowed, candidates, threads_of_row);
    else
      raw.scan(row, nullptr, scale, std::max(topk, candidates), threads_of_row);
    finish_sample(row, raw, known ? &allowed : nullptr, parameters, out, begin, starts[item + 1],
                  threads_of_row);
  });
}

}  // namespace pyttc
