// Launches of kernels whose threads share out the units of a plan. Included by .cu files alone.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include "plan.h"

namespace cmsolvers {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 16;  // some waves of blocks; a thread takes what is left

// Blocks for the units of a plan.
inline unsigned blocks_for(const Plan& plan, int device) {
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t needed = (plan.units + kThreads - 1) / kThreads;
  const int64_t most = static_cast<int64_t>(multiprocessors) * kBlocksPerMultiprocessor;
  return static_cast<unsigned>(std::min(needed, most));
}

// Blocks for one thread per sample.
inline unsigned blocks_for(int64_t batch) {
  return static_cast<unsigned>((batch + kThreads - 1) / kThreads);
}

// The kernels of one state for a plan in logical order and for a permuted one.
template <class Params>
struct UnitKernels {
  void (*straight)(Params, Plan);
  void (*permuted)(Params, Plan);
};

// What belongs to the dtype of a state.
template <class T>
T of_state(DType state, T f64, T f32, T f16, T bf16) {
  if (state == DType::f64) return f64;
  if (state == DType::f32) return f32;
  return state == DType::f16 ? f16 : bf16;
}

template <class Params>
void launch_units(const UnitKernels<Params>& kernels, const Params& params, const Plan& plan,
                  int device, cudaStream_t stream) {
  const auto kernel = plan.permuted ? kernels.permuted : kernels.straight;
  kernel<<<blocks_for(plan, device), kThreads, 0, stream>>>(params, plan);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace cuda
}  // namespace cmsolvers
