#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"
#include "kept.h"
#include "module.h"

namespace pyttc {
namespace {

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

[[noreturn]] void fail_real(const char* name, int64_t i, double got, const char* expected) {
  throw py::value_error(std::string(name) + ": element " + std::to_string(i) + " is " +
                        std::to_string(got) + ", expected " + expected);
}

struct Outputs {
  int64_t* tokens;
  float *logprobs, *processed, *kept_mass, *entropy;
  uint8_t* valid;
  float* topk_logprobs;
  int64_t* topk_indices;
  int64_t topk;
};

// A word of the counter of each row.
std::vector<uint32_t> counter_words(const char* name, py::handle tensor) {
  const Tensor t(tensor);
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

struct Call {
  DType dtype;
  const char* logits;
  int64_t rows, v, row_bytes;
  const int32_t* mask;
  int64_t mask_stride;
  std::vector<uint32_t> path_ids, positions;
  Whole seed, top_k;
  Reals temperature, top_p, min_p;
  Outputs out;

  const char* row(int64_t i) const { return logits + i * row_bytes; }

  void check() const {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t key = seed.at(i);
      const double t = temperature.at(i), p = top_p.at(i), m = min_p.at(i);
      if (key < 0) fail("seed", i, key, "0 <= seed < 2**63");
      if (!(t >= 0 && t < INFINITY)) fail_real("temperature", i, t, "a finite number >= 0");
      if (!(p >= 0 && p <= 1)) fail_real("top_p", i, p, "0 <= top_p <= 1");
      if (!(m >= 0 && m <= 1)) fail_real("min_p", i, m, "0 <= min_p <= 1");
      if (numbers()) return;
    }
  }

  bool numbers() const { return !temperature.data; }  // the parameters: all numbers, or all tensors

  // Whether rows i and j draw from the same distribution: one scan then serves both.
  bool same(int64_t i, int64_t j) const {
    const size_t bytes = v * (dtype == DType::f32 ? 4 : 2), mask_bytes = (v + 31) / 32 * 4;
    return (numbers() || (temperature.at(i) == temperature.at(j) && top_k.at(i) == top_k.at(j) &&
                          top_p.at(i) == top_p.at(j) && min_p.at(i) == min_p.at(j))) &&
           (!row_bytes || !std::memcmp(row(i), row(j), bytes)) &&
           (!mask || !mask_stride ||
            !std::memcmp(mask + i * mask_stride, mask + j * mask_stride, mask_bytes));
  }

  void no_token(int64_t i) const {
    out.tokens[i] = -1;
    out.logprobs[i] = out.processed[i] = out.kept_mass[i] = -INFINITY;
    out.valid[i] = 0;
  }

  void draw(int64_t begin, int64_t end, Kept& kept) const {
    std::vector<uint64_t> seeds(end - begin);
    for (int64_t i = begin; i < end; ++i) seeds[i - begin] = seed.at(i);
    std::vector<double> u(end - begin);
    pick(uniforms_generic, uniforms_avx2, uniforms_avx512)(
        seeds.data(), path_ids.data() + begin, positions.data() + begin, end - begin, u.data());
    kept.draw(u.data(), end - begin, out.tokens + begin);
  }

  // Rows [begin, end), which are the same but for their random numbers.
  void sample(int64_t begin, int64_t end, int threads) const {
    static thread_local ScannedRow scanned;
    static thread_local Kept kept;
    const Row r{row_scan_kernels(dtype), dtype, row(begin), v};
    const bool greedy = temperature.at(begin) == 0;
    const Scale scale = make_scale(greedy ? 1 : temperature.at(begin));
    Filters filters;
    if (mask) filters.mask = mask + begin * mask_stride;
    const int64_t k = top_k.at(begin);
    filters.top_k = greedy ? 1 : k > 0 && k < v ? k : 0;
    filters.top_p = top_p.at(begin);
    filters.min_p = min_p.at(begin);

    const int64_t candidates = mask ? 0 : candidates_of(filters);
    scanned.scan(r, nullptr, scale, std::max(out.topk, candidates), threads);
    if (out.topk)
      write_best(r, scanned, scale, out.topk, out.topk_logprobs + begin * out.topk,
                 out.topk_indices + begin * out.topk);
    const double log2_sum = scanned.totals.log2_sum;
    const bool something = !scanned.invalid && log2_sum > -INFINITY;
    const bool any = something && kept.find(r, scanned, scale, filters, threads);
    if (any) draw(begin, end, kept);
    const bool all = any && !mask && !filters.any();
    const double kept_mass = all || !any ? 0 : std::min(0., kLn2 * (kept.log2_mass() - log2_sum));
    for (int64_t i = begin; i < end; ++i) {
      out.entropy[i] = something ? static_cast<float>(scanned.totals.entropy) : 0;
      if (i > begin && out.topk) {
        std::copy_n(out.topk_logprobs + begin * out.topk, out.topk,
                    out.topk_logprobs + i * out.topk);
        std::copy_n(out.topk_indices + begin * out.topk, out.topk, out.topk_indices + i * out.topk);
      }
      if (!any) {
        no_token(i);
        continue;
      }
      const int64_t token = out.tokens[i];
      const double logprob = kLn2 * (r.at(token) * scale.c - log2_sum);
      out.logprobs[i] = static_cast<float>(logprob);
      out.processed[i] = static_cast<float>(logprob - kept_mass);
      out.kept_mass[i] = static_cast<float>(kept_mass);
      out.valid[i] = 1;
    }
  }
};

// logits [B, V]; mask [B, ceil(V / 32)] or None; parameters numbers or [B]; outputs [B] and [B,
// topk]
void sample(py::handle logits_, py::handle seed, py::handle path_ids, py::handle positions,
            py::handle temperature, py::handle top_k, py::handle top_p, py::handle min_p,
            py::handle mask_, int64_t topk, py::handle tokens, py::handle logprobs,
            py::handle processed, py::handle kept_mass, py::handle entropy, py::handle valid,
            py::handle topk_logprobs, py::handle topk_indices, int threads) {
  const Tensor logits(logits_);
  const DType dtype = logits.dtype();
  const int64_t width = dtype == DType::f32 ? 4 : 2;
  const Outputs out{Tensor(tokens).data<int64_t>(),
                    Tensor(logprobs).data<float>(),
                    Tensor(processed).data<float>(),
                    Tensor(kept_mass).data<float>(),
                    Tensor(entropy).data<float>(),
                    Tensor(valid).data<uint8_t>(),
                    Tensor(topk_logprobs).data<float>(),
                    Tensor(topk_indices).data<int64_t>(),
                    topk};
  Call call{dtype,
            logits.data<char>(),
            logits.size(0),
            logits.size(1),
            logits.stride(0) * width,
            nullptr,
            0,
            counter_words("path_ids", path_ids),
            counter_words("positions", positions),
            Whole(seed),
            Whole(top_k),
            Reals(temperature),
            Reals(top_p),
            Reals(min_p),
            out};
  if (!mask_.is_none()) {
    const Tensor mask(mask_);
    call.mask = mask.data<int32_t>();
    call.mask_stride = mask.stride(0);
  }
  py::gil_scoped_release release;
  call.check();
  // Rows that are the same as the one before them share its scan.
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < call.rows; ++i)
    if (i == 0 || !call.same(i, i - 1)) starts.push_back(i);
  const int64_t n = starts.size();
  starts.push_back(call.rows);
  parallel_rows(n, threads, [&](int64_t i, int threads_of_row) {
    call.sample(starts[i], starts[i + 1], threads_of_row);
  });
}

}  // namespace

void bind_sample(py::module_& m) { m.def("sample", &sample); }

}  // namespace pyttc
