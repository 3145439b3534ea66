// Launches of the weighted step.
#include "../cuda/launch.h"
#include "thread.h"

namespace cmsolvers {
namespace cuda {
namespace {

// Blocks that must fit on a multiprocessor together: 64 registers per thread, 128 for double.
template <class State>
constexpr int kResident = std::is_same_v<State, double> ? 2 : 4;

template <class State, class Model, int kInputs, bool kNoise, bool kFull, bool kPermuted>
__global__ void __launch_bounds__(kThreads, kResident<State>)
    step_kernel(const __grid_constant__ StepParams params, const __grid_constant__ Plan plan) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  step_thread<State, Model, kInputs, kNoise, kFull, kPermuted>(params, plan, first, stride);
}

struct Launch {
  const StepParams& params;
  const Plan& plan;
  int device;
  cudaStream_t stream;

  template <class State, class Model, int kInputs, bool kNoise, bool kFull, bool kPermuted>
  void run() const {
    step_kernel<State, Model, kInputs, kNoise, kFull, kPermuted>
        <<<blocks_for(plan, device), kThreads, 0, stream>>>(params, plan);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // Every choice that is made at run time becomes a template argument here. The common steps have
  // their own kernels; whatever is rarer shares one.
  template <class State, class Model>
  void choose() const {
    const bool full = params.use_x0 || params.second != Second::none || params.has_tensors;
    const int n = params.n_inputs;
    if (plan.permuted) return run<State, Model, kMaxInputs, true, true, true>();
    if (full) {
      if (n <= 1) return run<State, Model, 1, true, true, false>();
      return run<State, Model, kMaxInputs, true, true, false>();
    }
    if (params.noise) {
      if (n <= 1) return run<State, Model, 1, true, false, false>();
      if (n == 2) return run<State, Model, 2, true, false, false>();
      return run<State, Model, kMaxInputs, true, false, false>();
    }
    if (n <= 1) return run<State, Model, 1, false, false, false>();
    if (n == 2) return run<State, Model, 2, false, false, false>();
    return run<State, Model, kMaxInputs, false, false, false>();
  }

  template <class State>
  void choose_model() const {
    const DType model = params.n_inputs == 0 ? params.state : params.model;
    if (model == params.state) return choose<State, State>();
    if constexpr (sizeof(State) >= 4) {  // inputs of lower precision
      if (model == DType::f16) return choose<State, Half>();
      if (model == DType::bf16) return choose<State, BFloat>();
    }
    if constexpr (sizeof(State) == 8) {
      if (model == DType::f32) return choose<State, float>();
    }
    TORCH_CHECK(false, "inputs must have the dtype of x or one of lower precision");
  }

  void choose_state() const {
    switch (params.state) {
      case DType::f64:
        return choose_model<double>();
      case DType::f32:
        return choose_model<float>();
      case DType::f16:
        return choose_model<Half>();
      case DType::bf16:
        return choose_model<BFloat>();
    }
  }
};

}  // namespace
}  // namespace cuda

void launch_step_cuda(const StepParams& params, int device, void* stream) {
  if (params.total == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cuda::Plan plan = cuda::make_plan(params);
  cuda::Launch{params, plan, device, static_cast<cudaStream_t>(stream)}.choose_state();
}

}  // namespace cmsolvers
