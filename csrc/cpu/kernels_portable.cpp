// The kernels for any processor.
#define CMS_ISA portable
#include "kernels.h"
#include "lanes_portable.h"

#include "../ema/cpu_kernel.h"
#include "../loss/cpu_kernel.h"
#include "../noise_sum/cpu_kernel.h"
#include "../step/cpu_kernel.h"

namespace cmsolvers {
const CpuKernels* portable_kernels() {
  static const CpuKernels kernels{
      &portable::run,          &portable::run_noise_sum,         &portable::run_noise_forms,
      &portable::run_distance, &portable::run_distance_backward, &portable::run_ema};
  return &kernels;
}
}  // namespace cmsolvers
