#define PYTTC_ISA_AVX2
#include "merge_states_kernel.h"
