#define PYTTC_ISA_AVX512
#include "attention_kernel.h"
