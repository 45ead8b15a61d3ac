#include "isa.h"
#include "module.h"
#include "row_score.h"

namespace pyttc {
namespace {

// logits [B, V]; logprobs, indices [B, k]; logsumexp, entropy [B]
void topk_score(py::handle logits_, int64_t k, double temperature, py::handle logprobs_,
                py::handle indices_, py::handle logsumexp_, py::handle entropy_, int threads) {
  const Tensor logits(logits_), logprobs(logprobs_), indices(indices_), logsumexp(logsumexp_),
      entropy(entropy_);
  py::gil_scoped_release release;
  const DType dtype = logits.dtype();
  const RowScanKernels& kernels = row_scan_kernels(dtype);
  const int64_t width = dtype == DType::f32 ? 4 : 2;
  const Scale scale = make_scale(temperature);
  parallel_rows(logits.size(0), threads, [&](int64_t i, int threads_of_row) {
    static thread_local ScannedRow scanned;
    const Row row{kernels, dtype, logits.data<char>() + i * logits.stride(0) * width,
                  logits.size(1)};
    scanned.scan(row, nullptr, scale, k, threads_of_row);
    write_best(row, scanned, scale, k, logprobs.data<float>() + i * k,
               indices.data<int64_t>() + i * k);
    const bool bad = scanned.invalid;
    logsumexp.data<float>()[i] =
        bad ? -__builtin_inff() : static_cast<float>(kLn2 * scanned.totals.log2_sum);
    entropy.data<float>()[i] = bad ? 0 : static_cast<float>(scanned.totals.entropy);
  });
}

}  // namespace

void bind_topk_score(py::module_& m) { m.def("topk_score", &topk_score); }

}  // namespace pyttc
