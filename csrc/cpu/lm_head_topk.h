// The matrix product of lm_head_topk, compiled once per instruction set: the logits of one block of
// the vocabulary for a batch of hidden rows, to be scanned before the next block overwrites them.
#pragma once
#include <cstdint>

namespace pyttc {

constexpr int kHeadBlock = 256;  // vocabulary rows a call, and the stride of its output

// Each logit is summed over h in an order of its own, which depends on nothing but h.
struct LmHead {
  int64_t (*packed_bytes)(int64_t rows, int64_t h);
  // Hidden rows, `stride` elements apart, in the layout that `logits` reads; `packed` is aligned
  // to 64.
  void (*pack)(const void* hidden, int64_t stride, int64_t rows, int64_t h, void* packed);
  // out[row * kHeadBlock + v] for the `count` weight rows at `weight`. What lies past count is
  // undefined.
  void (*logits)(const void* weight, int64_t stride, int count, const void* packed, int64_t rows,
                 int64_t h, float* out);
};

struct LmHeads {
  LmHead f32, bf16, f16;
};

extern const LmHeads lm_heads_generic, lm_heads_avx2, lm_heads_avx512;
extern const LmHead lm_head_bf16_amx;

}  // namespace pyttc
