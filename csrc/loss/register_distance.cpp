// The kernels of the operators form_distance and form_distance_backward, whose schemas
// cmsolvers/ops/distance.py defines.
#include "distance.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "../python/prepare.h"

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {
namespace {

// Parameters, and the tensors that keep their memory alive.
struct Terms {
  DistanceParams params;
  at::Tensor layout;  // an input whose layout is that of all
  std::vector<at::Tensor> inputs;
  at::Tensor weights;
};

// A tensor whose samples lie dense, one after the other: the first input, or a copy.
at::Tensor by_sample(const at::Tensor& m) {
  const int64_t batch = m.size(0);
  if (m.is_contiguous()) return m;
  const bool outermost = batch <= 1 || m.numel() == 0 || m.stride(0) == m.numel() / batch;
  return m.is_non_overlapping_and_dense() && outermost ? m : m.contiguous();
}

void fill_terms(Terms& t, at::TensorList inputs, const at::Tensor& weights, int64_t size,
                double c) {
  const int64_t n = static_cast<int64_t>(inputs.size());
  TORCH_CHECK_VALUE(n >= 1 && n <= kMaxTerms, "inputs must hold 1 to ", kMaxTerms, " tensors; got ",
                    n);
  TORCH_CHECK_VALUE(size >= 0 && size < kSizes, "kind must be from 0 to ", kSizes - 1, "; got ",
                    size);
  const at::Tensor& first = inputs[0];
  TORCH_CHECK_VALUE(first.dim() > 0, "inputs[0] must have a batch dimension");
  TORCH_CHECK_TYPE(weights.scalar_type() == at::kDouble, "weights must be float64");
  TORCH_CHECK_VALUE(weights.device() == first.device(), "weights must be on the device of inputs");
  TORCH_CHECK_VALUE(fits_terms(weights, n, first.size(0)), "weights must have shape [", n, ", ",
                    first.size(0), "] or [", n, ", 1]; got ", weights.sizes());
  DistanceParams& p = t.params;
  t.layout = by_sample(first);
  t.inputs.reserve(n);
  for (int64_t k = 0; k < n; ++k) {
    const at::Tensor& m = inputs[k];
    TORCH_CHECK_VALUE(m.sizes() == first.sizes(), "inputs[", k,
                      "] must have the shape of inputs[0], ", first.sizes(), "; got ", m.sizes());
    TORCH_CHECK_VALUE(m.device() == first.device(), "inputs[", k,
                      "] must be on the device of inputs[0]");
    p.types[k] = dtype_of(m.scalar_type());
    p.wide = p.wide || p.types[k] == DType::f64;
    t.inputs.push_back(in_layout_of(k == 0 ? t.layout : m, t.layout));
    p.inputs[k] = t.inputs[k].const_data_ptr();
  }
  t.weights = weights.contiguous();
  p.n = static_cast<int>(n);
  p.weights = t.weights.const_data_ptr<double>();
  p.columns = t.weights.size(1);
  p.batch = first.size(0);
  p.count = p.batch == 0 ? 0 : first.numel() / p.batch;
  p.size = static_cast<Size>(size);
  p.c = c;
}

std::vector<at::Tensor> backward_kernel(const at::Tensor& grad, at::TensorList inputs,
                                        const at::Tensor& weights, const at::Tensor& value,
                                        int64_t size, double c, c10::List<bool> wanted) {
  TORCH_CHECK_VALUE(wanted.size() == inputs.size(), "wanted must hold one entry per input");
  std::array<bool, kMaxTerms> flags = {};
  for (size_t k = 0; k < std::min<size_t>(wanted.size(), kMaxTerms); ++k) flags[k] = wanted[k];
  return form_distance_backward(grad, inputs, weights, value, size, c, flags);
}

}  // namespace

std::vector<at::Tensor> form_distance_backward(const at::Tensor& grad, at::TensorList inputs,
                                               const at::Tensor& weights, const at::Tensor& value,
                                               int64_t size, double c,
                                               std::array<bool, kMaxTerms> wanted) {
  Terms t;
  fill_terms(t, inputs, weights, size, c);
  DistanceParams& p = t.params;
  for (const at::Tensor* given : {&grad, &value})
    TORCH_CHECK_VALUE(given->dim() == 1 && given->size(0) == p.batch &&
                          given->scalar_type() == at::kDouble &&
                          given->device() == t.layout.device(),
                      "grad and value must be float64 [", p.batch, "] on the device of inputs");
  const at::Tensor values = value.contiguous();
  p.grad = grad.const_data_ptr<double>();
  p.grad_stride = p.batch == 1 ? 0 : grad.stride(0);
  p.given_values = values.const_data_ptr<double>();
  std::vector<at::Tensor> grads, made;
  for (int k = 0; k < p.n; ++k) {
    if (!wanted[k]) continue;
    grads.push_back(at::empty_like(inputs[k]));
    const bool direct = same_order(grads.back(), t.layout);
    made.push_back(
        direct ? grads.back()
               : at::empty_strided(t.layout.sizes(), t.layout.strides(), grads.back().options()));
    p.grads[k] = made.back().mutable_data_ptr();
  }
  if (grads.empty()) return grads;
  if (grad.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = grad.get_device();
    launch_distance_backward_cuda(p, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
  } else {
    launch_distance_backward_cpu(p);
  }
  for (size_t i = 0; i < grads.size(); ++i)
    if (!made[i].is_same(grads[i])) grads[i].copy_(made[i]);
  return grads;
}

bool fits_terms(const at::Tensor& weights, int64_t inputs, int64_t batch) {
  return weights.dim() == 2 && weights.size(0) == inputs &&
         (weights.size(1) == batch || weights.size(1) == 1);
}

at::Tensor form_distance(at::TensorList inputs, const at::Tensor& weights, int64_t size, double c) {
  Terms t;
  fill_terms(t, inputs, weights, size, c);
  DistanceParams& p = t.params;
  at::Tensor values = at::empty({p.batch}, t.weights.options());
  p.values = values.mutable_data_ptr<double>();
  const int64_t chunks = chunks_of(p.count, values.is_cuda() ? kCudaChunk : kCpuChunk);
  at::Tensor partials;
  if (chunks > 1) {
    partials = at::empty({p.batch, chunks}, values.options());
    p.partials = partials.mutable_data_ptr<double>();
  }
  if (values.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = values.get_device();
    launch_distance_cuda(p, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
  } else {
    launch_distance_cpu(p);
  }
  return values;
}

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("form_distance", &form_distance);
  m.impl("form_distance_backward", &backward_kernel);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("form_distance", &form_distance);
  m.impl("form_distance_backward", &backward_kernel);
}
#endif

}  // namespace cmsolvers
