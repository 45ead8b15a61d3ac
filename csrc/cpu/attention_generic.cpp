#define PYTTC_ISA_GENERIC
#include "attention_kernel.h"
