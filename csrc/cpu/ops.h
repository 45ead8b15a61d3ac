// The native ops, as pyttc._C offers them: inputs as pyttc/ops checked them, outputs to fill, and
// the number of threads. Each is defined in the file of its name. linear, llama_pass, llama_steps,
// and the three of layers.cpp, are the engine's own.
#pragma once
#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "per_row.h"
#include "tensor.h"

namespace pyttc {

void copy_pages(const Tensor& k_pages, const Tensor& v_pages, const Tensor& src, const Tensor& dst,
                int threads);

void linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Output& out,
            int threads);

// As Layer in pyttc/engine/llama.py: norms, product of q, k and v, norms of heads, product after
// attention, of gate and up, and down; scale and window of attention.
using Norms = std::pair<Tensor, Tensor>;
using LinearLayer = std::pair<Tensor, OptionalTensor>;  // weight, bias
using LlamaLayer = std::tuple<Norms, LinearLayer, std::optional<Norms>, LinearLayer, LinearLayer,
                              LinearLayer, double, std::optional<int64_t>>;
// layers, embedding [V, H], last norm, eps, cos and sin [P, D] of all positions below P, and pages
// of keys and values [layers, pages, page_size, Hkv, D].
using LlamaModel =
    std::tuple<std::vector<LlamaLayer>, Tensor, Tensor, double, Tensor, Tensor, Tensor, Tensor>;
// As for prefix_tree_attention: parents, page_offsets, page_ids, lengths, leaves.
using TreeTensors = std::array<Tensor, 5>;
enum { kProducts, kAttention, kOtherLayers, kDrawing, kPassParts };
using PassSeconds = std::array<double, kPassParts>;  // what a pass spent on each

// tokens, positions [rows]; slots as for store_kv; out [rows, H].
PassSeconds llama_pass(const LlamaModel& model, const Tensor& tokens, const Tensor& positions,
                       const Tensor& slots, const TreeTensors& tree, const Output& out,
                       int threads);

// Up to `steps` steps of decoding of rows that are the leaves of a tree, each one row's own: a pass
// over tokens [rows], which stand at positions [rows] at the ends of their leaves, logits, and a
// draw as sample's, whose tokens are the next step's. The last is that in which a row draws a token
// of ends [V] or none. The lengths of the leaves are those after all steps. hidden [rows, H] is of
// the last step; the outputs are those of sample for [steps * rows], a step after the other.
// Returns the steps done.
std::pair<int64_t, PassSeconds> llama_steps(
    const LlamaModel& model, const LinearLayer& head, const Tensor& tokens, const Tensor& positions,
    const TreeTensors& tree, int64_t steps, const Tensor& ends, const Whole& seed,
    const Tensor& path_ids, const Reals& temperature, const Whole& top_k, const Reals& top_p,
    const Reals& min_p, const OptionalTensor& mask, int64_t topk, const Output& hidden,
    const std::array<Output, 8>& drawn, int threads);

void lm_head_topk(const Tensor& hidden, const Tensor& weight, int64_t k, double temperature,
                  const Output& logprobs, const Output& indices, const Output& logsumexp,
                  const Output& entropy, int threads);

void lm_head_topk_sample(const Tensor& hidden, const Tensor& weight, const Whole& seed,
                         const Tensor& path_ids, const Tensor& positions, const Reals& temperature,
                         const Whole& top_k, const Reals& top_p, const Reals& min_p,
                         const OptionalTensor& mask, int64_t topk, const Output& tokens,
                         const Output& logprobs, const Output& processed, const Output& kept_mass,
                         const Output& entropy, const Output& valid, const Output& topk_logprobs,
                         const Output& topk_indices, int threads);

void merge_states(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b,
                  const Tensor& lse_b, const Output& out, const Output& lse, int threads);

void prefix_tree_attention(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages,
                           const Tensor& parents, const Tensor& page_offsets,
                           const Tensor& page_ids, const Tensor& lengths, const Tensor& leaves,
                           std::optional<double> scale, std::optional<int64_t> window,
                           std::optional<double> softcap, const Output& out, const Output& lse,
                           int threads);

void rms_norm(const Tensor& x, const OptionalTensor& added, const Tensor& weight, double eps,
              const Output& out, int threads);

void rotary(const Output& x, const Tensor& cos, const Tensor& sin, int threads);

void sample(const Tensor& logits, const Whole& seed, const Tensor& path_ids,
            const Tensor& positions, const Reals& temperature, const Whole& top_k,
            const Reals& top_p, const Reals& min_p, const OptionalTensor& mask, int64_t topk,
            const Output& tokens, const Output& logprobs, const Output& processed,
            const Output& kept_mass, const Output& entropy, const Output& valid,
            const Output& topk_logprobs, const Output& topk_indices, int threads);

void select_beams(const Tensor& scores, const Tensor& logprobs, const Tensor& tokens,
                  const Tensor& groups, int64_t width, const OptionalTensor& bonus,
                  const OptionalTensor& length, double length_penalty, const Output& parents,
                  const Output& best_tokens, const Output& best_scores, int threads);

void shared_prefix_attention(const Tensor& q, const Tensor& k_prefix, const Tensor& v_prefix,
                             const Tensor& k_suffix, const Tensor& v_suffix,
                             const Tensor& suffix_lens, const OptionalTensor& prefix_lens,
                             std::optional<double> scale, const Output& out, const Output& lse,
                             int threads);

void silu_mul(const Tensor& gate, const Tensor& up, const Output& out, int threads);

void store_kv(const Tensor& k, const Tensor& v, const Tensor& k_pages, const Tensor& v_pages,
              const Tensor& slots, int threads);

void topk_score(const Tensor& logits, int64_t k, double temperature, const Output& logprobs,
                const Output& indices, const Output& logsumexp, const Output& entropy, int threads);

}  // namespace pyttc
