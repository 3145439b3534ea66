// The operator noise_forms, whose schema cmsolvers/ops/noising.py defines.
#include "forms.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "../python/prepare.h"
#include "derivatives.h"

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr at::ScalarType kTypes[] = {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16};

at::ScalarType type_of(int64_t code) {
  TORCH_CHECK_VALUE(code >= 0 && code < 4, "dtypes must hold codes from 0 to 3; got ", code);
  return kTypes[code];
}

void check_weights(const at::Tensor& weights, const at::Tensor& x0, int64_t n) {
  TORCH_CHECK_TYPE(weights.scalar_type() == at::kDouble, "weights must be float64");
  TORCH_CHECK_VALUE(weights.device() == x0.device(), "weights must be on the device of x0");
  TORCH_CHECK_VALUE(fits_forms(weights, batch_of(x0)) && weights.size(0) == n,
                    "weights must have shape [", n, ", 2, ", batch_of(x0), "] or [", n,
                    ", 2, 1], at most ", kMaxForms, " of them; got ", weights.sizes());
}

std::vector<at::Tensor> noise_forms(const at::Tensor& x0, const at::Tensor& weights,
                                    at::IntArrayRef noise, const OptionalTensor& key,
                                    at::IntArrayRef dtypes) {
  const int64_t n = static_cast<int64_t>(dtypes.size());
  check_weights(weights, x0, n);
  TORCH_CHECK_VALUE(noise.size() == 4, "noise must be (seed, offset, stream, draw)");
  TORCH_CHECK_VALUE(drawable(x0), "a sample may hold at most 2^34 elements where noise is drawn");
  NoiseFormsParams p;
  StepParams& place = p.place;
  place.noise = true;
  place.state = dtype_of(x0.scalar_type());
  place.seed = static_cast<uint64_t>(noise[0]);
  place.offset = static_cast<uint64_t>(noise[1]);
  place.stream = static_cast<uint32_t>(noise[2]);
  place.draw = static_cast<uint32_t>(noise[3]);
  const at::Tensor kept = key.has_value() ? take_key(place, *key, x0) : at::Tensor();
  std::vector<at::Tensor> outs;
  for (int64_t j = 0; j < n; ++j)
    outs.push_back(at::empty_like(x0, x0.options().dtype(type_of(dtypes[j]))));
  // On the CPU logical order and a copy are faster than gathering single elements.
  const bool direct = x0.is_cuda() || outs[0].is_contiguous();
  std::vector<at::Tensor> made;
  for (const at::Tensor& out : outs)
    made.push_back(direct ? out : at::empty(out.sizes(), out.options()));
  launch_forms(p, in_layout_of(x0, made[0]), weights, made);
  if (!direct)
    for (int64_t j = 0; j < n; ++j) outs[j].copy_(made[j]);
  return outs;
}

std::vector<at::Tensor> call_below_autograd(const at::Tensor& x0, const at::Tensor& weights,
                                            at::IntArrayRef noise, const OptionalTensor& key,
                                            at::IntArrayRef dtypes) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("cmsolvers::noise_forms", "")
                             .typed<decltype(noise_forms)>();
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x0, weights, noise, key, dtypes);
}

// Differentiable in x0: the normals from the kernel, the forms of them in torch.
std::vector<at::Tensor> differentiable(const at::Tensor& x0, const at::Tensor& weights,
                                       at::IntArrayRef noise, const OptionalTensor& key,
                                       at::IntArrayRef dtypes) {
  const at::ScalarType wide = x0.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor alone = at::tensor({0.0, 1.0}, weights.options()).view({1, 2, 1});
  const int64_t code = wide == at::kDouble ? 0 : 1;
  const at::Tensor z = call_below_autograd(x0, alone, noise, key, code)[0];
  std::vector<at::Tensor> outs;
  for (size_t j = 0; j < dtypes.size(); ++j) {
    const at::Tensor a = per_sample(weights.select(0, j).select(0, 0).to(wide), x0);
    const at::Tensor b = per_sample(weights.select(0, j).select(0, 1).to(wide), x0);
    const at::Tensor first = at::where(a == 0, at::zeros_like(a), a * x0.to(wide));
    outs.push_back(at::where(b == 0, first, first + b * z).to(type_of(dtypes[j])));
  }
  return outs;
}

std::vector<at::Tensor> noise_forms_autograd(const at::Tensor& x0, const at::Tensor& weights,
                                             at::IntArrayRef noise, const OptionalTensor& key,
                                             at::IntArrayRef dtypes) {
  check_constant("weights", weights);
  if (followed(x0)) return differentiable(x0, weights, noise, key, dtypes);
  return call_below_autograd(x0, weights, noise, key, dtypes);
}

}  // namespace

bool fits_forms(const at::Tensor& weights, int64_t batch) {
  return weights.dim() == 3 && weights.size(0) >= 1 && weights.size(0) <= kMaxForms &&
         weights.size(1) == 2 && (weights.size(2) == batch || weights.size(2) == 1);
}

void launch_forms(NoiseFormsParams& p, const at::Tensor& x, const at::Tensor& weights,
                  const std::vector<at::Tensor>& outs) {
  const at::Tensor rows = weights.contiguous();
  p.n = static_cast<int>(outs.size());
  p.weights = rows.const_data_ptr<double>();
  p.columns = rows.size(2);
  p.place.x = x.const_data_ptr();
  for (int j = 0; j < p.n; ++j) {
    p.outs[j] = outs[j].mutable_data_ptr();
    p.types[j] = dtype_of(outs[j].scalar_type());
  }
  describe_layout(p.place, outs[0]);
  if (x.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = x.get_device();
    launch_noise_forms_cuda(p, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
    return;
  }
  launch_noise_forms_cpu(p);
}

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("noise_forms", &noise_forms);
}

TORCH_LIBRARY_IMPL(cmsolvers, Autograd, m) {
  m.impl("noise_forms", &noise_forms_autograd);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("noise_forms", &noise_forms);
}
#endif

}  // namespace cmsolvers
