// The operator consistency_rows, whose schema cmsolvers/ops/pair_rows.py defines.
#include "rows.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "../python/arguments.h"
#include "params.h"

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {

std::tuple<at::Tensor, at::Tensor> consistency_rows(const at::Tensor& sigma,
                                                    const at::Tensor& sigma_next, double sigma_data,
                                                    double sigma_min) {
  for (const at::Tensor* level : {&sigma, &sigma_next}) {
    TORCH_CHECK_TYPE(level->scalar_type() == at::kDouble, "levels must be float64");
    TORCH_CHECK_VALUE(
        level->dim() == 1 && level->sizes() == sigma.sizes() && level->device() == sigma.device(),
        "levels must have one shape [B] and be on one device");
  }
  RowsParams p;
  p.batch = sigma.size(0);
  p.sigma = sigma.const_data_ptr<double>();
  p.sigma_next = sigma_next.const_data_ptr<double>();
  p.stride = sigma.stride(0);
  p.next_stride = sigma_next.stride(0);
  p.sigma_data = sigma_data;
  p.sigma_min = sigma_min;
  hold_sigma_min(sigma_min, p.held);
  at::Tensor noise = at::empty({4, 2, p.batch}, sigma.options());
  at::Tensor residual = at::empty({4, p.batch}, sigma.options());
  p.noise = noise.mutable_data_ptr<double>();
  p.residual = residual.mutable_data_ptr<double>();
  if (sigma.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = sigma.get_device();
    launch_rows_cuda(p, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
  } else {
    launch_rows_cpu(p);
  }
  return {noise, residual};
}

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("consistency_rows", &consistency_rows);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("consistency_rows", &consistency_rows);
}
#endif

}  // namespace cmsolvers
