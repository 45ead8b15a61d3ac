// The vectorised row of merge_states, compiled once per instruction set.
#pragma once
#include "softmax_state.h"

namespace pyttc {

using MergeRow = void (*)(const void* a, const void* b, void* out, MergeWeights w, int64_t d);

struct MergeStates {
  MergeRow f32, bf16, f16;
};

extern const MergeStates merge_states_generic, merge_states_avx2, merge_states_avx512;

}  // namespace pyttc
