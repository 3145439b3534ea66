// Chooses the instruction set, and shares the work of every operator among ATen's threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../loss/group.h"
#include "../uniform/group.h"
#include "instruction_set.h"
#include "kernels.h"

namespace cmsolvers {
namespace {

constexpr int64_t kUnit = 1024;  // positions that threads share work in
// Outputs beyond this will not be found in cache.
constexpr int64_t kStreamBytes = int64_t{1} << 23;
const char* const kNames[] = {"portable", "avx2", "avx512"};

const CpuKernels* kernels_of(int level) {
  return level == 2 ? avx512_kernels() : level == 1 ? avx2_kernels() : portable_kernels();
}

bool usable(int level) {
  if (level == 0) return true;
  if (level < 0 || level > 2 || kernels_of(level) == nullptr) return false;
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

// Calls run(begin, end) for parts of 0 .. total; fewer than `least` positions are not worth a
// second thread.
template <class Run>
void share(int64_t total, int64_t least, const Run& run) {
  const int64_t grain = std::max<int64_t>(least / kUnit, 1);
  const int64_t units = (total + kUnit - 1) / kUnit;
  if (units <= grain) return run(int64_t{0}, total);
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    run(begin * kUnit, std::min(end * kUnit, total));
  });
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
  const CpuKernels& kernels = *kernels_of(instruction_set());
  const bool large = p.total * size_of(p.state) >= kStreamBytes;
  const bool stream = large && p.out != p.x && p.out != nullptr;
  share(p.total, p.noise ? 4096 : 16384,
        [&](int64_t begin, int64_t end) { kernels.step(p, begin, end, stream); });
}

void launch_noise_sum_cpu(const NoiseSumParams& p) {
  if (p.place.total == 0) return;
  const CpuKernels& kernels = *kernels_of(instruction_set());
  share(p.place.total, 4096 / std::max(p.n, 1),
        [&](int64_t begin, int64_t end) { kernels.noise_sum(p, begin, end); });
}

void launch_noise_forms_cpu(const NoiseFormsParams& p) {
  if (p.place.total == 0) return;
  const CpuKernels& kernels = *kernels_of(instruction_set());
  share(p.place.total, 4096,
        [&](int64_t begin, int64_t end) { kernels.noise_forms(p, begin, end); });
}

namespace {

// Calls run(begin, end) for parts of the chunks of all samples.
template <class Run>
void share_chunks(const DistanceParams& p, const Run& run) {
  const int64_t chunks = p.batch * chunks_of(p.count, kCpuChunk);
  const int64_t grain = std::max<int64_t>(16384 / std::max<int64_t>(p.count, 1), 1);
  if (chunks <= grain) return run(int64_t{0}, chunks);
  at::parallel_for(0, chunks, grain, run);
}

}  // namespace

void launch_distance_cpu(const DistanceParams& p) {
  if (p.batch == 0) return;
  const CpuKernels& kernels = *kernels_of(instruction_set());
  share_chunks(p, [&](int64_t begin, int64_t end) { kernels.distance(p, begin, end); });
  const int64_t chunks = chunks_of(p.count, kCpuChunk);
  if (chunks == 1) return;
  for (int64_t b = 0; b < p.batch; ++b) {
    double sum = 0.0;
    for (int64_t i = 0; i < chunks; ++i) sum += p.partials[b * chunks + i];
    p.values[b] = portable::value_of(p, sum);
  }
}

void launch_distance_backward_cpu(const DistanceParams& p) {
  if (p.batch == 0 || p.count == 0) return;
  const CpuKernels& kernels = *kernels_of(instruction_set());
  share_chunks(p, [&](int64_t begin, int64_t end) { kernels.distance_backward(p, begin, end); });
}

void launch_rows_cpu(const RowsParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) portable::pair_rows(p, b);
}

void launch_ema_cpu(const EmaBatch& batch) {
  if (batch.n == 0) return;
  const CpuKernels& kernels = *kernels_of(instruction_set());
  share(batch.first[batch.n], 16384,
        [&](int64_t begin, int64_t end) { kernels.ema(batch, begin, end); });
}

void launch_uniform_cpu(const UniformParams& p) {
  if (p.place.total == 0) return;
  const int64_t groups = portable::groups_of(p);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) portable::uniform4(p, i, groups);
  };
  const int64_t all = p.place.total / p.place.count * groups;
  if (all <= 4096) return run(0, all);
  at::parallel_for(0, all, 4096, run);
}

}  // namespace cmsolvers
