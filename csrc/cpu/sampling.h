// What sample and lm_head_topk share: a call's parameters and outputs, and all that follows the
// scan of a row.
#pragma once
#include "kept.h"
#include "per_row.h"

namespace pyttc {

inline void require_drawing(int64_t rows, int64_t v, const Tensor& path_ids,
                            const Tensor& positions, const OptionalTensor& mask, int64_t topk) {
  require(fits_index(path_ids, {rows}) && fits_index(positions, {rows}) && topk >= 0 &&
          topk <= kMostBest && topk <= v);
  require(!mask || fits(*mask, DType::i32, {rows, (v + 31) / 32}));
}

struct SampleParameters {
  std::vector<uint32_t> path_ids, positions;
  Whole seed, top_k;
  Reals temperature, top_p, min_p;
  const int32_t* mask;  // null: every column is allowed
  int64_t mask_stride;

  SampleParameters(const Whole& seed, const Tensor& path_ids, const Tensor& positions,
                   const Reals& temperature, const Whole& top_k, const Reals& top_p,
                   const Reals& min_p, const OptionalTensor& mask);
  // Raises for an element that is out of its range.
  void check(int64_t rows) const;
  // Whether rows i and j of v columns are treated alike, but for their random numbers.
  bool same(int64_t i, int64_t j, int64_t v) const;

  // They are all numbers or all tensors.
  bool numbers() const { return !temperature.data; }
  bool greedy(int64_t i) const { return temperature.at(i) == 0; }
  Scale scale(int64_t i) const { return make_scale(greedy(i) ? 1 : temperature.at(i)); }
  Filters filters(int64_t i, int64_t v) const;
  // How many of the best columns the scan of row i is to find; with a mask, the scan of what it
  // allows.
  int64_t candidates(int64_t i, int64_t v) const { return candidates_of(filters(i, v)); }
};

struct SampleOutputs {
  int64_t* tokens;
  float *logprobs, *processed, *kept_mass, *entropy;
  uint8_t* valid;
  float* topk_logprobs;
  int64_t* topk_indices;
  int64_t topk;

  SampleOutputs(const Tensor& tokens, const Tensor& logprobs, const Tensor& processed,
                const Tensor& kept_mass, const Tensor& entropy, const Tensor& valid,
                const Tensor& topk_logprobs, const Tensor& topk_indices, int64_t topk);
};

// Draws for rows [begin, end), which are the same but for their random numbers, and writes their
// outputs. `raw` is the scan of all columns of the row, `masked` of those its mask allows, or null
// to do it here.
void finish_sample(const Row& row, const ScannedRow& raw, const ScannedRow* masked,
                   const SampleParameters& parameters, const SampleOutputs& out, int64_t begin,
                   int64_t end, int threads);

}  // namespace pyttc
