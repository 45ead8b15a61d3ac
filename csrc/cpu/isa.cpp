#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace pyttc {

const char* isa_name(Isa isa) {
  static const char* names[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
  return names[static_cast<int>(isa)];
}

#if defined(__x86_64__)
namespace {

// Register state the operating system saves on a context switch; a cpuid bit alone does not say so.
unsigned long long xcr0() {
  unsigned a, d;
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return a | static_cast<unsigned long long>(d) << 32;
}

bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::generic;
  const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1, avx = c >> 28 & 1;
  if (!osxsave || !fma || !f16c || !avx || (xcr0() & 0x6) != 0x6) return Isa::generic;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::generic;
  const bool avx2 = b >> 5 & 1;
  const bool avx512 =
      (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F DQ BW VL
  const bool amx = (d >> 24 & 1) && (d >> 22 & 1);                       // TILE BF16
  if (!avx2) return Isa::generic;
  if (!avx512 || (xcr0() & 0xe6) != 0xe6) return Isa::avx2;
  unsigned a1 = 0, b1, c1, d1;
  const bool avx512_bf16 = __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 >> 5 & 1);
#if defined(PYTTC_EMULATE_AMX)  // amx.h brings its own tiles
  return avx512_bf16 ? Isa::amx : Isa::avx512;
#endif
  if (!avx512_bf16) return Isa::avx512;
  if (!amx || (xcr0() & 0x60000) != 0x60000 || !tiles_permitted()) return Isa::avx512bf16;
  return Isa::amx;
}

}  // namespace
#else
namespace {
Isa detect() { return Isa::generic; }
}  // namespace
#endif

Isa isa_of_machine() {
  static const Isa best = detect();
  return best;
}

Isa isa() {
  static const Isa chosen = [] {
    const Isa best = isa_of_machine();
    const char* want = std::getenv("PYTTC_CPU_ISA");
    if (!want || !*want) return best;
    for (Isa level : {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx})
      if (!std::strcmp(want, isa_name(level))) {
        if (level > best)
          throw std::runtime_error(std::string("PYTTC_CPU_ISA=") + want +
                                   ": this machine reaches only " + isa_name(best));
        return level;
      }
    throw std::runtime_error(std::string("PYTTC_CPU_ISA: got ") + want +
                             ", expected generic, avx2, avx512, avx512bf16 or amx");
  }();
  return chosen;
}

}  // namespace pyttc
