// The CUDA ops, as pyttc._cuda offers them: inputs as pyttc/ops checked them, outputs to fill. Each
// launches on `stream`, allocates nothing and waits for nothing, so that graphs can capture it.
// Each is defined in the file of its name.
#pragma once
#include <vector>

#include "cuda_api.h"
#include "tensor.h"

namespace pyttc {

cudaError_t copy_pages(cudaStream_t stream, const Tensor& k_pages, const Tensor& v_pages,
                       const Tensor& src, const Tensor& dst);

cudaError_t merge_states(cudaStream_t stream, const Tensor& out_a, const Tensor& lse_a,
                         const Tensor& out_b, const Tensor& lse_b, const Tensor& out,
                         const Tensor& lse);

cudaError_t sample(cudaStream_t stream, const Tensor& logits, const std::vector<Tensor>& per_row,
                   int64_t seed, double temperature, int64_t top_k, double top_p, double min_p,
                   const Tensor& path_ids, const Tensor& positions, const OptionalTensor& mask,
                   int64_t topk, const Tensor& workspace, const Tensor& tokens,
                   const Tensor& logprobs, const Tensor& processed, const Tensor& kept_mass,
                   const Tensor& entropy, const Tensor& valid, const Tensor& topk_logprobs,
                   const Tensor& topk_indices);

cudaError_t select_beams(cudaStream_t stream, const Tensor& scores, const Tensor& logprobs,
                         const Tensor& tokens, const Tensor& groups, int64_t width,
                         const OptionalTensor& bonus, const OptionalTensor& length,
                         double length_penalty, const Tensor& workspace, const Tensor& parents,
                         const Tensor& best_tokens, const Tensor& best_scores);

cudaError_t store_kv(cudaStream_t stream, const Tensor& k, const Tensor& v, const Tensor& k_pages,
                     const Tensor& v_pages, const Tensor& slots, const OptionalTensor& table);

cudaError_t topk_score(cudaStream_t stream, const Tensor& logits, int64_t k, double temperature,
                       const Tensor& workspace, const Tensor& logprobs, const Tensor& indices,
                       const Tensor& logsumexp, const Tensor& entropy);

}  // namespace pyttc
