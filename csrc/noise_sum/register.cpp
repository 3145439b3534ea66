// The kernel of the operator noise_sum, whose schema cmsolvers/ops/noise_sum.py defines.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../python/prepare.h"
#include "params.h"

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void fill_terms(NoiseSumParams& p, const at::Tensor& out, at::IntArrayRef draws,
                c10::ArrayRef<double> weights, const OptionalTensor& table) {
  const int64_t n = table.has_value() && table->dim() == 3 ? table->size(1) : draws.size();
  TORCH_CHECK_VALUE(n <= kMaxDraws, "draws must hold at most ", kMaxDraws, " entries; got ", n);
  p.n = static_cast<int>(n);
  if (table.has_value()) {
    TORCH_CHECK_VALUE(table->dim() == 3 && table->size(0) == batch_of(out) && table->size(2) == 2 &&
                          draws.empty() && weights.empty(),
                      "table must have shape [", batch_of(out),
                      ", n, 2], with draws and weights empty; got ", table->sizes());
    TORCH_CHECK_TYPE(table->scalar_type() == at::kDouble, "table must be float64");
    TORCH_CHECK_VALUE(table->device() == out.device() && table->is_contiguous(),
                      "table must be contiguous, on the device of out");
    p.table = table->const_data_ptr<double>();
    return;
  }
  TORCH_CHECK_VALUE(draws.size() == weights.size(), "draws and weights must be of one length; got ",
                    draws.size(), " and ", weights.size());
  for (int k = 0; k < p.n; ++k) {
    TORCH_CHECK_VALUE(draws[k] >= 0 && draws[k] <= 0xFFFFFFFF, "draws must lie in [0, 2^32); got ",
                      draws[k]);
    p.draws[k] = static_cast<uint32_t>(draws[k]);
    p.weights[k] = static_cast<float>(weights[k]);
  }
}

// Returns the table of keys in use, which must outlive the launch.
at::Tensor fill_place(StepParams& p, const at::Tensor& out, at::IntArrayRef noise,
                      const OptionalTensor& key) {
  TORCH_CHECK_VALUE(noise.size() == 3, "noise must be (seed, offset, stream)");
  TORCH_CHECK_VALUE(drawable(out), "a sample may hold at most 2^34 elements where noise is drawn");
  p.state = dtype_of(out.scalar_type());
  p.out = out.mutable_data_ptr();
  p.noise = true;
  p.seed = static_cast<uint64_t>(noise[0]);
  p.offset = static_cast<uint64_t>(noise[1]);
  p.stream = static_cast<uint32_t>(noise[2]);
  describe_layout(p, out);
  const at::Tensor kept = key.has_value() ? take_key(p, *key, out) : at::Tensor();
  TORCH_CHECK_VALUE(p.key_width == 2, "key must not hold draws: the terms have their own");
  return kept;
}

void noise_sum(const at::Tensor& out, at::IntArrayRef draws, c10::ArrayRef<double> weights,
               const OptionalTensor& table, at::IntArrayRef noise, const OptionalTensor& key) {
  NoiseSumParams p;
  fill_terms(p, out, draws, weights, table);
  // On the CPU summing in logical order and a copy are faster than gathering single elements.
  const bool direct = out.is_cpu() ? out.is_contiguous() : out.is_non_overlapping_and_dense();
  const at::Tensor sums = direct ? out : at::empty(out.sizes(), out.options());
  const at::Tensor kept = fill_place(p.place, sums, noise, key);
  if (out.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = out.get_device();
    launch_noise_sum_cuda(p, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
  } else {
    launch_noise_sum_cpu(p);
  }
  if (!direct) out.copy_(sums);
  mark_written(out);
}

}  // namespace

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("noise_sum", &noise_sum);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("noise_sum", &noise_sum);
}
#endif

}  // namespace cmsolvers
