// Shares the work of a sum of noise among ATen's threads, in the instruction set in use.
#include <ATen/Parallel.h>

#include <algorithm>

#include "noise_sum_table.h"

namespace cmsolvers {
namespace {

constexpr int64_t kUnit = 1024;           // positions that threads share work in
constexpr int64_t kNormalsShared = 4096;  // fewer are not worth a second thread

RunNoiseSum kernel(int level) {
  return level == 2 ? noise_sum_avx512() : level == 1 ? noise_sum_avx2() : noise_sum_portable();
}

}  // namespace

void launch_noise_sum_cpu(const NoiseSumParams& p) {
  const int64_t total = p.place.total;
  if (total == 0) return;
  const RunNoiseSum run = kernel(instruction_set());
  const int64_t grain = std::max<int64_t>(kNormalsShared / std::max(p.n, 1) / kUnit, 1);
  const int64_t units = (total + kUnit - 1) / kUnit;
  if (units <= grain) return run(p, 0, total);
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    run(p, begin * kUnit, std::min(end * kUnit, total));
  });
}

}  // namespace cmsolvers
