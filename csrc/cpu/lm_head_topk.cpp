// Logits exist only as blocks of 256 columns of at most 64 rows: computed, scanned as topk_score
// and sample scan them, and overwritten by the next. Work is cut by rows and by ranges of columns,
// which never shows in a result: neither a logit nor a block's sums depend on anything outside.
#include <algorithm>

#include "ops.h"
#include "row_product.h"
#include "sampling.h"

namespace pyttc {
namespace {

static_assert(kProductBlock == kBlock);

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Where element `column` is read from when a buffer holds only columns [begin, ...) of a row.
const float* row_at(const float* buffer, int64_t begin) {
  return reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(buffer) -
                                        begin * sizeof(float));
}

// A row whose logits are computed again when they are asked for, one block at a time.
class HeadRow : public Row {
 public:
  HeadRow(const RowProduct& product, int64_t i)
      : Row(DType::f32, nullptr, product.columns()), product_(product), i_(i) {}

  const void* columns(int64_t begin, int64_t) const override {
    const int64_t block = begin / kBlock;
    if (!packed_) packed_ = product_.pack(&i_, 1);
    if (block_ != block) product_.block(block * kBlock, kBlock, packed_.get(), 1, logits_);
    block_ = block;
    return row_at(logits_, block * kBlock);
  }

 private:
  const RowProduct& product_;
  const int64_t i_;
  mutable CacheLines packed_;
  mutable int64_t block_ = -1;
  alignas(64) mutable float logits_[kBlock];
};

// What is to be found in a row.
struct Search {
  Scale scale;
  int64_t k;
  const int32_t* mask;  // of the columns to look at, or null
  ScannedRow found;
};

// How a call falls into items of up to `rows` rows and one of `parts` ranges of columns.
struct Cut {
  int64_t rows, parts;
};

Cut cut(int64_t rows, int64_t segments, int64_t room, int threads) {
  // The candidates of an item's rows stay in about a megabyte; at 256 rows the weights cost
  // nothing.
  const int64_t fit = (int64_t{1} << 17) / room / kGranule * kGranule;
  const int64_t most = std::min<int64_t>(256, std::max(kGranule, fit));
  const int64_t parts = std::min(segments, divide_up(threads, divide_up(rows, most)));
  const int64_t items = std::max(divide_up(rows, most), divide_up(threads, parts));
  return {divide_up(divide_up(rows, items), kGranule) * kGranule, parts};
}

// Does all searches, searches[j] in row j % B, on one computation of each block of logits.
void scan_product(const RowProduct& product, std::vector<Search>& searches, int threads) {
  const int64_t rows = product.rows(), v = product.columns(), blocks = blocks_of(product.columns());
  if (rows == 0) return;
  const int64_t n = searches.size(), segments = divide_up(blocks, kSegmentBlocks);
  int64_t room = 1;
  for (const Search& search : searches) room = std::max(room, key_room(search.k));
  const Cut items = cut(rows, segments, room, threads);
  std::vector<RowScan> scans(elements({n, items.parts}));  // [search][part]
  for (int64_t j = 0; j < n; ++j) {
    Search& search = searches[j];
    search.found.keys.resize(elements({key_room(search.k), items.parts}));
    search.found.blocks.resize(blocks);
    for (int64_t part = 0; part < items.parts; ++part)
      begin_scan(scans[j * items.parts + part], search.scale, search.k,
                 search.found.keys.data() + part * key_room(search.k), search.found.blocks.data());
  }
  const auto scan = row_scan_kernels(DType::f32).scan;
  parallel_for(divide_up(rows, items.rows) * items.parts, threads, [&](int64_t item) {
    alignas(64) float logits[kProductRows * kBlock];
    const int64_t part = item % items.parts, begin = item / items.parts * items.rows;
    const int64_t end = std::min(rows, begin + items.rows);
    const int64_t last = std::min(blocks, segments * (part + 1) / items.parts * kSegmentBlocks);
    for (int64_t b = segments * part / items.parts * kSegmentBlocks; b < last; ++b)
      for (int64_t first = begin; first < end; first += kProductRows) {
        const int64_t at_once = std::min(end - first, kProductRows);
        product.block(b * kBlock, kBlock, first, at_once, logits);
        for (int64_t r = 0; r < at_once; ++r)
          for (int64_t j = first + r; j < n; j += rows) {
            Filter filter;
            filter.mask = searches[j].mask;
            scan(row_at(logits + r * kBlock, b * kBlock), v, b, b + 1,
                 filter.mask ? &filter : nullptr, scans[j * items.parts + part]);
          }
      }
  });
  parallel_for(n, threads, [&](int64_t j) {
    searches[j].found.merge(&scans[j * items.parts], items.parts, v);
  });
}

}  // namespace

// hidden [B, H], weight [V, H]; logprobs, indices [B, k]; logsumexp, entropy [B]
void lm_head_topk(const Tensor& hidden, const Tensor& weight, int64_t k, double temperature,
                  const Output& logprobs, const Output& indices, const Output& logsumexp,
                  const Output& entropy, int threads) {
  require_product(hidden, weight);
  require_scoring(weight.size(0), k, temperature);
  const RowProduct product(hidden, weight);
  const Scale scale = make_scale(temperature);
  std::vector<Search> searches(product.rows(), {scale, k, nullptr, {}});
  scan_product(product, searches, threads);
  parallel_for(product.rows(), threads, [&](int64_t i) {
    const ScannedRow& found = searches[i].found;
    write_best(HeadRow(product, i), found, scale, k, logprobs.data<float>() + i * k,
               indices.data<int64_t>() + i * k);
    logsumexp.data<float>()[i] = found.logsumexp();
    entropy.data<float>()[i] = found.entropy();
  });
}

// hidden [B, H], weight [V, H]; the rest as in sample
void lm_head_topk_sample(const Tensor& hidden, const Tensor& weight, const Whole& seed,
                         const Tensor& path_ids, const Tensor& positions, const Reals& temperature,
                         const Whole& top_k, const Reals& top_p, const Reals& min_p,
                         const OptionalTensor& mask, int64_t topk, const Output& tokens,
                         const Output& logprobs, const Output& processed, const Output& kept_mass,
                         const Output& entropy, const Output& valid, const Output& topk_logprobs,
                         const Output& topk_indices, int threads) {
  require_product(hidden, weight);
  require_drawing(hidden.size(0), weight.size(0), path_ids, positions, mask, topk);
  const SampleParameters parameters(seed, path_ids, positions, temperature, top_k, top_p, min_p,
                                    mask);
  const SampleOutputs out(tokens, logprobs, processed, kept_mass, entropy, valid, topk_logprobs,
                          topk_indices, topk);
  const int64_t rows = hidden.size(0), v = weight.size(0);
  parameters.check(rows);
  const RowProduct product(hidden, weight);
  std::vector<Search> searches;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t candidates = parameters.mask ? 0 : parameters.candidates(i, v);
    searches.push_back({parameters.scale(i), std::max(topk, candidates), nullptr, {}});
  }
  for (int64_t i = 0; i < rows && parameters.mask; ++i) {
    const Filters filters = parameters.filters(i, v);
    searches.push_back({parameters.scale(i), candidates_of(filters), filters.mask, {}});
  }
  scan_product(product, searches, threads);
  const auto allowed = [&](int64_t i) {
    return parameters.mask ? &searches[rows + i].found : nullptr;
  };
  std::vector<int64_t> again;
  for (int64_t i = 0; i < rows; ++i) {
    const ScannedRow& found = parameters.mask ? *allowed(i) : searches[i].found;
    if (!searches[i].found.invalid &&
        needs_row(found, parameters.scale(i), parameters.filters(i, v)))
      again.push_back(i);
  }
  parallel_for(rows, threads, [&](int64_t i) {
    if (!std::binary_search(again.begin(), again.end(), i))
      finish_sample(HeadRow(product, i), searches[i].found, allowed(i), parameters, out, i, i + 1,
                    1);
  });
  // Few enough at a time that their whole rows stay small, enough that the weights are not read a
  // row.
  constexpr int64_t kAtOnce = 16;
  std::vector<float> logits(elements({std::min<int64_t>(kAtOnce, again.size()), v}));
  for (size_t first = 0; first < again.size(); first += kAtOnce) {
    const int64_t n = std::min<int64_t>(kAtOnce, again.size() - first);
    const CacheLines packed = product.pack(&again[first], n);
    parallel_for(blocks_of(product.columns()), threads, [&](int64_t b) {
      alignas(64) float block[kAtOnce * kBlock];
      product.block(b * kBlock, kBlock, packed.get(), n, block);
      const int64_t columns = std::min<int64_t>(kBlock, v - b * kBlock);
      for (int64_t r = 0; r < n; ++r)
        std::copy_n(block + r * kBlock, columns, logits.data() + r * v + b * kBlock);
    });
    parallel_for(n, threads, [&](int64_t r) {
      const int64_t i = again[first + r];
      const Row row(DType::f32, logits.data() + r * v, v);
      finish_sample(row, searches[i].found, allowed(i), parameters, out, i, i + 1, 1);
    });
  }
}

}  // namespace pyttc
