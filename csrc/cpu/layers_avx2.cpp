#define PYTTC_ISA_AVX2
#include "layers_kernel.h"
