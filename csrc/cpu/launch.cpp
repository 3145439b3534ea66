// Chooses the instruction set and shares the work among ATen's threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernel_table.h"

namespace cmsolvers {
namespace {

constexpr int64_t kUnit = 1024;  // positions that threads share work in
constexpr int64_t kStreamBytes = int64_t{1}
                                 << 23;  // outputs beyond this will not be found in cache
const char* const kNames[] = {"portable", "avx2", "avx512"};

RunRange kernel(int level) {
  return level == 2 ? run_avx512() : level == 1 ? run_avx2() : run_portable();
}

bool usable(int level) {
  if (level == 0) return true;
  if (level < 0 || level > 2 || kernel(level) == nullptr) return false;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (level == 1) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

int initial_level() {
  if (const char* wanted = std::getenv("CMSOLVERS_INSTRUCTION_SET")) {
    for (int level = 0; level <= 2; ++level)
      if (std::string(wanted) == kNames[level] && usable(level)) return level;
  }
  return best_instruction_set();
}

std::atomic<int>& level_in_use() {
  static std::atomic<int> level{initial_level()};
  return level;
}

}  // namespace

int best_instruction_set() {
  return usable(2) ? 2 : usable(1) ? 1 : 0;
}

int instruction_set() {
  return level_in_use().load(std::memory_order_relaxed);
}

void set_instruction_set(int level) {
  if (!usable(level))
    throw std::invalid_argument("instruction set " + std::to_string(level) + " is not usable here");
  level_in_use().store(level);
}

const char* instruction_set_name(int level) {
  return kNames[level];
}

void launch_step_cpu(const StepParams& p) {
  if (p.total == 0) return;
  const RunRange run = kernel(instruction_set());
  const int64_t size = p.state == DType::f64 ? 8 : p.state == DType::f32 ? 4 : 2;
  const bool stream = p.total * size >= kStreamBytes && p.out != p.x && p.out != nullptr;
  const int64_t grain = (p.noise ? int64_t{4096} : int64_t{16384}) / kUnit;
  const int64_t units = (p.total + kUnit - 1) / kUnit;
  if (units <= grain) return run(p, 0, p.total, stream);
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    run(p, begin * kUnit, std::min(end * kUnit, p.total), stream);
  });
}

}  // namespace cmsolvers
