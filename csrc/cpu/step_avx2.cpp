// The step for AVX2, FMA and F16C.
#define CMS_ISA avx2
#include "kernel_table.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"

#include "../step/cpu_kernel.h"

namespace cmsolvers {
RunRange run_avx2() {
  return &avx2::run;
}
}  // namespace cmsolvers
#else
namespace cmsolvers {
RunRange run_avx2() {
  return nullptr;
}
}  // namespace cmsolvers
#endif
