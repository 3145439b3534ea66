// The launch for the weights of consistency pairs.
#include "../cuda/launch.h"
#include "group.h"

namespace cmsolvers {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ RowsParams params) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (sample < params.batch) CMS_ISA::pair_rows(params, sample);
}

}  // namespace
}  // namespace cuda

void launch_rows_cuda(const RowsParams& params, int device, void* stream) {
  if (params.batch == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const unsigned blocks = cuda::blocks_for(params.batch);
  cuda::rows_kernel<<<blocks, cuda::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace cmsolvers
