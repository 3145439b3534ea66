// The step for any processor.
#define CMS_ISA portable
#include "lanes_portable.h"

#include "../step/cpu_kernel.h"

namespace cmsolvers {
RunRange run_portable() {
  return &portable::run;
}
}  // namespace cmsolvers
