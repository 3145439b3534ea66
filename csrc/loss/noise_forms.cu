// Launches of forms of one noise, and of the weights of pairs.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include "thread.h"

namespace cmsolvers {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 16;

template <class State>
constexpr int kResident = std::is_same_v<State, double> ? 2 : 4;

template <class State, bool kPermuted>
__global__ void __launch_bounds__(kThreads, kResident<State>)
    noise_forms_kernel(const __grid_constant__ NoiseFormsParams params,
                       const __grid_constant__ Plan plan) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  noise_forms_thread<State, kPermuted>(params, plan, first, stride);
}

__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ RowsParams params) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (sample < params.batch) pair_rows(params, sample);
}

template <class State>
void run(const NoiseFormsParams& params, const Plan& plan, int device, cudaStream_t stream) {
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t needed = (plan.units + kThreads - 1) / kThreads;
  const int64_t most = static_cast<int64_t>(multiprocessors) * kBlocksPerMultiprocessor;
  const unsigned blocks = static_cast<unsigned>(std::min(needed, most));
  if (plan.permuted)
    noise_forms_kernel<State, true><<<blocks, kThreads, 0, stream>>>(params, plan);
  else
    noise_forms_kernel<State, false><<<blocks, kThreads, 0, stream>>>(params, plan);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace cuda

void launch_noise_forms_cuda(const NoiseFormsParams& params, int device, void* stream) {
  if (params.place.total == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cuda::Plan plan = cuda::make_forms_plan(params);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (params.place.state) {
    case DType::f64:
      return cuda::run<double>(params, plan, device, on);
    case DType::f32:
      return cuda::run<float>(params, plan, device, on);
    case DType::f16:
      return cuda::run<cuda::Half>(params, plan, device, on);
    case DType::bf16:
      return cuda::run<cuda::BFloat>(params, plan, device, on);
  }
}

void launch_rows_cuda(const RowsParams& params, int device, void* stream) {
  if (params.batch == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const unsigned blocks =
      static_cast<unsigned>((params.batch + cuda::kThreads - 1) / cuda::kThreads);
  cuda::rows_kernel<<<blocks, cuda::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace cmsolvers
