#define PYTTC_ISA_GENERIC
#include "row_draw_kernel.h"

namespace pyttc {
extern const RowScanTable PYTTC_ISA(row_scan) = {kKernels<float>, kKernels<bf16>, kKernels<f16>};
}  // namespace pyttc
