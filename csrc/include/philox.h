// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
// counter-based generator, so that a draw is a pure function of (seed, path, position, draw,
// purpose) and of nothing else.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define PYTTC_HOST_DEVICE __host__ __device__
#else
#define PYTTC_HOST_DEVICE
#endif

namespace pyttc {

struct Philox {
  uint32_t word[4];
};

PYTTC_HOST_DEVICE inline Philox philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                       uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// What a draw is for: streams of different purposes never meet.
enum class Purpose : uint32_t { token = 0 };

// Uniform on [0, 1) with 53 bits: the counter is (path id, position, draw, purpose).
PYTTC_HOST_DEVICE inline double uniform(uint64_t seed, uint32_t path, uint32_t position,
                                        uint32_t draw, Purpose purpose) {
  Philox r = philox(seed, path, position, draw, static_cast<uint32_t>(purpose));
  uint64_t bits = uint64_t{r.word[0]} | uint64_t{r.word[1]} << 32;
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace pyttc
