#define PYTTC_ISA_AVX512
#include "layers_kernel.h"
