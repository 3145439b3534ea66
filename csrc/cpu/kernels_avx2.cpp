// The kernels for AVX2, FMA and F16C.
#define CMS_ISA avx2
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"

#include "../ema/cpu_kernel.h"
#include "../loss/cpu_kernel.h"
#include "../noise_sum/cpu_kernel.h"
#include "../step/cpu_kernel.h"

namespace cmsolvers {
const CpuKernels* avx2_kernels() {
  static const CpuKernels kernels{
      &avx2::run,          &avx2::run_noise_sum,         &avx2::run_noise_forms,
      &avx2::run_distance, &avx2::run_distance_backward, &avx2::run_ema};
  return &kernels;
}
}  // namespace cmsolvers
#else
namespace cmsolvers {
const CpuKernels* avx2_kernels() {
  return nullptr;
}
}  // namespace cmsolvers
#endif
