#define PYTTC_ISA_AVX512
#include "merge_states_kernel.h"
