// The launch for weights and times of a consistency pair.
#include "pair_inputs.h"

#include "../cuda/launch.h"

namespace cmsolvers {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    pair_inputs_kernel(const __grid_constant__ PairInputsParams params) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (sample < params.levels.batch) CMS_ISA::pair_inputs(params, sample);
}

}  // namespace
}  // namespace cuda

void launch_pair_inputs_cuda(const PairInputsParams& params, int device, void* stream) {
  const int64_t batch = params.levels.batch;
  if (batch == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const unsigned blocks = cuda::blocks_for(batch);
  cuda::pair_inputs_kernel<<<blocks, cuda::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      params);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace cmsolvers
