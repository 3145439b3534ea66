// The kernel of the operator uniform, whose schema cmsolvers/ops/random.py defines.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../python/prepare.h"
#include "params.h"

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {
namespace {

void uniform(const at::Tensor& out, at::IntArrayRef noise, const std::optional<at::Tensor>& key) {
  TORCH_CHECK_TYPE(out.scalar_type() == at::kDouble, "out must be float64");
  TORCH_CHECK_VALUE(out.dim() == 2 && out.is_contiguous(), "out must be contiguous, [B, count]");
  TORCH_CHECK_VALUE(noise.size() == 4, "noise must be (seed, offset, stream, draw)");
  TORCH_CHECK_VALUE(drawable(out), "a sample may hold at most 2^34 elements where noise is drawn");
  UniformParams p;
  p.place.seed = static_cast<uint64_t>(noise[0]);
  p.place.offset = static_cast<uint64_t>(noise[1]);
  p.place.stream = static_cast<uint32_t>(noise[2]);
  p.place.draw = static_cast<uint32_t>(noise[3]);
  p.place.total = out.numel();
  p.place.count = out.size(1);
  p.out = out.mutable_data_ptr<double>();
  const at::Tensor kept = key.has_value() ? take_key(p.place, *key, out) : at::Tensor();
  if (out.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = out.get_device();
    launch_uniform_cuda(p, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
  } else {
    launch_uniform_cpu(p);
  }
  mark_written(out);
}

}  // namespace

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("uniform", &uniform);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("uniform", &uniform);
}
#endif

}  // namespace cmsolvers
