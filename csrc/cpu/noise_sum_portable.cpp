// Sums of noise for any processor.
#define CMS_ISA portable
#include "lanes_portable.h"

#include "../noise_sum/cpu_kernel.h"
#include "noise_sum_table.h"

namespace cmsolvers {
RunNoiseSum noise_sum_portable() {
  return &portable::run_noise_sum;
}
}  // namespace cmsolvers
