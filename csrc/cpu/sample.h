// The random numbers of many rows at once, compiled once per instruction set.
#pragma once
#include <cstdint>

namespace pyttc {

// u[i] = uniform(seeds[i], paths[i], positions[i], 0, Purpose::token)
using Uniforms = void (*)(const uint64_t* seeds, const uint32_t* paths, const uint32_t* positions,
                          int64_t n, double* u);

extern const Uniforms uniforms_generic, uniforms_avx2, uniforms_avx512;

}  // namespace pyttc
