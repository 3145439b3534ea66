// Launches of forms of one noise.
#include "../cuda/launch.h"
#include "thread.h"

namespace cmsolvers {
namespace cuda {
namespace {

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

template <class State>
UnitKernels<NoiseFormsParams> kernels() {
  return {noise_forms_kernel<State, false>, noise_forms_kernel<State, true>};
}

}  // namespace
}  // namespace cuda

void launch_noise_forms_cuda(const NoiseFormsParams& params, int device, void* stream) {
  if (params.place.total == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto kernels =
      cuda::of_state(params.place.state, cuda::kernels<double>(), cuda::kernels<float>(),
                     cuda::kernels<cuda::Half>(), cuda::kernels<cuda::BFloat>());
  cuda::launch_units(kernels, params, cuda::make_forms_plan(params), device,
                     static_cast<cudaStream_t>(stream));
}

}  // namespace cmsolvers
