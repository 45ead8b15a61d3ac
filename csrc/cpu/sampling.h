// What sample and lm_head_topk share: a call's parameters and outputs, and all that follows the
// scan of a row.
#pragma once
#include "kept.h"

namespace pyttc {

// A parameter of each row: a number for all, or a tensor [B] of 64- or 32-bit floats or integers.
template <class Wide, class Narrow>
struct PerRow {
  Wide number{};
  const void* data = nullptr;
  bool wide = false;
  int64_t stride = 0;

  explicit PerRow(py::handle value) {
    if (PyFloat_Check(value.ptr()) || PyLong_Check(value.ptr())) {
      number = value.cast<Wide>();
    } else {
      const Tensor t(value);
      data = t.data<void>();
      wide = t.t.dtype.bits == 64;
      stride = t.stride(0);
    }
  }
  Wide at(int64_t i) const {
    if (!data) return number;
    return wide ? static_cast<const Wide*>(data)[i * stride]
                : static_cast<const Narrow*>(data)[i * stride];
  }
};
using Reals = PerRow<double, float>;
using Whole = PerRow<int64_t, int32_t>;

struct SampleParameters {
  std::vector<uint32_t> path_ids, positions;
  Whole seed, top_k;
  Reals temperature, top_p, min_p;
  const int32_t* mask;  // null: every column is allowed
  int64_t mask_stride;

  SampleParameters(py::handle seed, py::handle path_ids, py::handle positions,
                   py::handle temperature, py::handle top_k, py::handle top_p, py::handle min_p,
                   py::handle mask);
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

  SampleOutputs(py::handle tokens, py::handle logprobs, py::handle processed, py::handle kept_mass,
                py::handle entropy, py::handle valid, py::handle topk_logprobs,
                py::handle topk_indices, int64_t topk);
};

// Draws for rows [begin, end), which are the same but for their random numbers, and writes their
// outputs. `raw` is the scan of all columns of the row, `masked` of those its mask allows, or null
// to do it here.
void finish_sample(const Row& row, const ScannedRow& raw, const ScannedRow* masked,
                   const SampleParameters& parameters, const SampleOutputs& out, int64_t begin,
                   int64_t end, int threads);

}  // namespace pyttc
