#define PYTTC_ISA_GENERIC
#include "sample_kernel.h"
