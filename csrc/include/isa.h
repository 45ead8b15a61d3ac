// Which instruction set the native kernels use: the best the processor and the operating system
// both allow, lowered by PYTTC_CPU_ISA. It is fixed for the life of the process, so bits never
// depend on it within a run.
#pragma once

namespace pyttc {

enum class Isa { generic, avx2, avx512, avx512bf16, amx };

Isa isa();             // in use
Isa isa_of_machine();  // the best that would work here
const char* isa_name(Isa isa);

// Picks the kernel table of the instruction set in use from one table per level.
template <class Table>
const Table& pick(const Table& generic, const Table& avx2, const Table& avx512) {
  switch (isa()) {
    case Isa::generic:
      return generic;
    case Isa::avx2:
      return avx2;
    default:
      return avx512;
  }
}

template <class Table>
const Table& pick(const Table& generic, const Table& avx2, const Table& avx512, const Table& amx) {
  return isa() == Isa::amx ? amx : pick(generic, avx2, avx512);
}

}  // namespace pyttc
