#define PYTTC_ISA_AVX512
#include "sample_kernel.h"
