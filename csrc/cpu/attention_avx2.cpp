#define PYTTC_ISA_AVX2
#include "attention_kernel.h"
