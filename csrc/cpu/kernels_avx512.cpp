// The kernels for AVX-512 F, DQ, BW and VL.
#define CMS_ISA avx512
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// GCC 12 warns about the undefined operands in its intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "lanes_avx512.h"

#include "../ema/cpu_kernel.h"
#include "../loss/cpu_kernel.h"
#include "../noise_sum/cpu_kernel.h"
#include "../step/cpu_kernel.h"

namespace cmsolvers {
const CpuKernels* avx512_kernels() {
  static const CpuKernels kernels{
      &avx512::run,          &avx512::run_noise_sum,         &avx512::run_noise_forms,
      &avx512::run_distance, &avx512::run_distance_backward, &avx512::run_ema};
  return &kernels;
}
}  // namespace cmsolvers
#else
namespace cmsolvers {
const CpuKernels* avx512_kernels() {
  return nullptr;
}
}  // namespace cmsolvers
#endif
