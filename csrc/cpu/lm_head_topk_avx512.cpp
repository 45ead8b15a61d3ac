#define PYTTC_ISA_AVX512
#include "lm_head_topk_kernel.h"
