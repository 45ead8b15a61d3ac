#define PYTTC_ISA_AVX2
#include "sample_kernel.h"
