#define PYTTC_ISA_GENERIC
#include "lm_head_topk_kernel.h"
