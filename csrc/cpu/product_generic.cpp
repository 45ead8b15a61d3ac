#define PYTTC_ISA_GENERIC
#include "product_kernel.h"
