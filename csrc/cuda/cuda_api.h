// The CUDA runtime, or its stand-in when the kernels are compiled for the host (launch.cuh says
// why).
#pragma once
#include <cstdint>

#if defined(PYTTC_EMULATE)
#include "emulation/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif
