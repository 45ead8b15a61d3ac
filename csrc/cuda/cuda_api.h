// The CUDA runtime, or its stand-in when the kernels are compiled for the host (launch.cuh says why).
#pragma once
#include <cstdint>

#if defined(PYTTC_EMULATE)
#include "emulation/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace pyttc {

enum class Float : int { f32 = 0, bf16 = 1, f16 = 2 };

}  // namespace pyttc
