// Weights and times of a consistency pair from its levels, on tensors that are checked.
#include "pair_inputs.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>

#include "../python/arguments.h"
#include "rows.h"

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {

void launch_pair_inputs_cpu(const PairInputsParams& p) {
  for (int64_t b = 0; b < p.levels.batch; ++b) portable::pair_inputs(p, b);
}

PairInputs pair_inputs(const at::Tensor& sigma, const at::Tensor& sigma_next, double sigma_data,
                       double sigma_min, double noise_factor) {
  PairInputsParams p;
  p.levels.batch = sigma.size(0);
  p.levels.sigma = sigma.const_data_ptr<double>();
  p.levels.sigma_next = sigma_next.const_data_ptr<double>();
  p.levels.stride = sigma.stride(0);
  p.levels.next_stride = sigma_next.stride(0);
  p.levels.sigma_data = sigma_data;
  p.levels.sigma_min = sigma_min;
  hold_sigma_min(sigma_min, p.levels.held);
  p.noise_factor = noise_factor;
  const auto make = [&](at::IntArrayRef shape, at::ScalarType type) {
    return sigma.is_cpu() ? at::Tensor(at::detail::empty_cpu(shape, type))
                          : at::empty(shape, sigma.options().dtype(type));
  };
  PairInputs made;
  made.noise = make({2, 2, p.levels.batch}, at::kDouble);
  made.residual = make({4, p.levels.batch}, at::kDouble);
  p.noise = made.noise.mutable_data_ptr<double>();
  p.residual = made.residual.mutable_data_ptr<double>();
  for (int k = 0; noise_factor != 0.0 && k < 2; ++k) {
    made.told[k] = make({p.levels.batch}, at::kFloat);
    p.told[k] = made.told[k].mutable_data_ptr<float>();
  }
  if (sigma.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = sigma.get_device();
    launch_pair_inputs_cuda(p, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
  } else {
    launch_pair_inputs_cpu(p);
  }
  return made;
}

}  // namespace cmsolvers
