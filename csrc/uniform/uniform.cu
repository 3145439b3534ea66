// Launches of uniforms.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include "../step/thread.h"
#include "group.h"

namespace cmsolvers {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMostBlocks = 4096;

__global__ void __launch_bounds__(kThreads)
    uniform_kernel(const __grid_constant__ UniformParams params, int64_t all, int64_t groups) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += stride)
    uniform4(params, i, groups);
}

}  // namespace
}  // namespace cuda

void launch_uniform_cuda(const UniformParams& params, int device, void* stream) {
  if (params.place.total == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const int64_t groups = cuda::groups_of(params);
  const int64_t all = params.place.total / params.place.count * groups;
  const int64_t needed = (all + cuda::kThreads - 1) / cuda::kThreads;
  const auto blocks = static_cast<unsigned>(std::min(needed, cuda::kMostBlocks));
  cuda::uniform_kernel<<<blocks, cuda::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      params, all, groups);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace cmsolvers
