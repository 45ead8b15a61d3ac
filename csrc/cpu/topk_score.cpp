#include "isa.h"
#include "ops.h"
#include "row_score.h"

namespace pyttc {
// logits [B, V]; logprobs, indices [B, k]; logsumexp, entropy [B]
void topk_score(const Tensor& logits, int64_t k, double temperature, const Output& logprobs,
                const Output& indices, const Output& logsumexp, const Output& entropy,
                int threads) {
  require_logits(logits);
  require_scoring(logits.size(1), k, temperature);
  const DType dtype = logits.dtype();
  const int64_t width = dtype == DType::f32 ? 4 : 2;
  const Scale scale = make_scale(temperature);
  parallel_rows(logits.size(0), threads, [&](int64_t i, int threads_of_row) {
    static thread_local ScannedRow scanned;
    const Row row(dtype, logits.data<char>() + i * logits.stride(0) * width, logits.size(1));
    scanned.scan(row, nullptr, scale, k, threads_of_row);
    write_best(row, scanned, scale, k, logprobs.data<float>() + i * k,
               indices.data<int64_t>() + i * k);
    logsumexp.data<float>()[i] = scanned.logsumexp();
    entropy.data<float>()[i] = scanned.entropy();
  });
}

}  // namespace pyttc
