#define PYTTC_ISA_GENERIC
#include "layers_kernel.h"
