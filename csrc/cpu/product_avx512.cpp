#define PYTTC_ISA_AVX512
#include "product_kernel.h"
