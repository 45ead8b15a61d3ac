#define PYTTC_ISA_AVX2
#include "lm_head_topk_kernel.h"
