#define PYTTC_ISA_GENERIC
#include "merge_states_kernel.h"
