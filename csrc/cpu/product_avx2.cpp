#define PYTTC_ISA_AVX2
#include "product_kernel.h"
