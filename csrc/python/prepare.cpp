#include "prepare.h"

#include <ATen/Functions.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <numeric>
#include <vector>

#if defined(CMSOLVERS_WITH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace cmsolvers {

bool same_order(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

at::Tensor in_layout_of(const at::Tensor& value, const at::Tensor& out) {
  if (same_order(value, out)) return value;
  at::Tensor copy = at::empty_strided(out.sizes(), out.strides(), value.options());
  return copy.copy_(value);
}

void describe_layout(StepParams& p, const at::Tensor& out) {
  const int64_t batch = batch_of(out);
  p.total = out.numel();
  p.count = batch == 0 ? 1 : std::max<int64_t>(p.total / batch, 1);
  p.permuted = false;
  if (p.total == 0 || out.dim() == 0) return;
  if (!p.noise && !p.per_sample) {  // nothing depends on the place: one flat run
    p.count = p.total;
    return;
  }
  const bool batch_outermost = batch == 1 || out.stride(0) == p.count;
  if (out.is_contiguous() || (!p.noise && batch_outermost)) return;
  std::vector<int64_t> order;
  for (int64_t d = 0; d < out.dim(); ++d)
    if (out.size(d) > 1) order.push_back(d);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return out.stride(a) > out.stride(b); });
  std::vector<int64_t> logical(out.dim(), 0);
  int64_t step = 1;
  for (int64_t d = out.dim() - 1; d >= 1; --d) {
    logical[d] = step;
    step *= out.size(d);
  }
  p.permuted = true;
  p.n_dims = 0;
  p.batch_dim = -1;
  for (int64_t d : order) {
    const int last = p.n_dims - 1;
    const bool joins =
        d != 0 && last >= 0 && last != p.batch_dim && p.strides[last] == logical[d] * out.size(d);
    if (joins) {
      p.dims[last] *= out.size(d);
      p.strides[last] = logical[d];
      continue;
    }
    TORCH_CHECK_VALUE(p.n_dims < kMaxDims, "x has more than ", kMaxDims, " permuted dimensions");
    if (d == 0) p.batch_dim = p.n_dims;
    p.dims[p.n_dims] = out.size(d);
    p.strides[p.n_dims] = logical[d];
    ++p.n_dims;
  }
}

Prepared prepare(const std::optional<at::Tensor>& first_out,
                 const std::optional<at::Tensor>& second_out, const at::Tensor& x,
                 at::TensorList inputs, const Arguments& arguments, at::IntArrayRef noise,
                 const std::optional<at::Tensor>& key, c10::ArrayRef<double> clamp,
                 int64_t second) {
  const int64_t n = static_cast<int64_t>(inputs.size());
  TORCH_CHECK_VALUE(n <= kMaxInputs, "inputs must hold at most ", kMaxInputs, " tensors; got ", n);
  TORCH_CHECK_VALUE(clamp.empty() || clamp.size() == 2, "clamp must be empty or (low, high)");
  TORCH_CHECK_VALUE(second >= 0 && second <= 3, "second must be 0, 1, 2 or 3; got ", second);
  TORCH_CHECK_VALUE((second != 0) == second_out.has_value(), "second_out must go with second");
  TORCH_CHECK_VALUE(first_out.has_value() || second_out.has_value(), "out must be given");
  const at::Tensor& out = first_out.has_value() ? *first_out : *second_out;
  TORCH_CHECK_VALUE(out.is_non_overlapping_and_dense(), "out must be dense");
  TORCH_CHECK_VALUE(out.sizes() == x.sizes(), "out must have the shape of x, ", x.sizes(), "; got ",
                    out.sizes());
  TORCH_CHECK_TYPE(!first_out.has_value() || out.scalar_type() == x.scalar_type(),
                   "out must have the dtype of x");
  TORCH_CHECK_VALUE(out.device() == x.device(), "out must be on the device of x");
  Prepared step;
  StepParams& p = step.params;
  p.n_inputs = static_cast<int>(n);
  p.state = dtype_of(x.scalar_type());
  p.model = p.state;
  for (int64_t k = 0; k < n; ++k) {
    const at::Tensor& m = inputs[k];
    TORCH_CHECK_VALUE(m.sizes() == x.sizes(), "inputs[", k, "] must have the shape of x, ",
                      x.sizes(), "; got ", m.sizes());
    TORCH_CHECK_VALUE(m.device() == x.device(), "inputs[", k, "] must be on the device of x");
    TORCH_CHECK_TYPE(m.scalar_type() == inputs[0].scalar_type(), "inputs must share one dtype");
    step.inputs[k] = in_layout_of(m, out);
    p.inputs[k] = step.inputs[k].const_data_ptr();
    p.model = dtype_of(m.scalar_type());
  }
  TORCH_CHECK_TYPE(model_fits(p.model, p.state),
                   "inputs must have the dtype of x or one of lower precision");
  step.x = in_layout_of(x, out);
  p.x = step.x.const_data_ptr();
  if (first_out.has_value()) p.out = out.mutable_data_ptr();
  if (second_out.has_value()) {
    TORCH_CHECK_VALUE(same_order(*second_out, out), "second_out must have the layout of out");
    TORCH_CHECK_VALUE(second_out->device() == x.device(), "second_out must be on the device of x");
    p.second_out = second_out->mutable_data_ptr();
    p.second_type = dtype_of(second_out->scalar_type());
  }
  p.second = static_cast<Second>(second);
  p.use_x0 = !clamp.empty() || p.second == Second::x0;
  TORCH_CHECK_VALUE(!p.use_x0 || n > 0, "inputs must not be empty where x0 is used");
  if (!clamp.empty()) {
    p.clamp = true;
    p.low = clamp[0];
    p.high = clamp[1];
  }
  c10::SmallVector<at::Tensor, 2> written;
  for (const auto* output : {&first_out, &second_out})
    if (output->has_value()) written.push_back(**output);
  fill_arguments(p, arguments, x, written, step.kept);
  settle_weights(p, x.is_cpu());
  if (!noise.empty()) {
    TORCH_CHECK_VALUE(noise.size() == 4, "noise must be empty or (seed, offset, stream, draw)");
    p.noise = true;
    p.seed = static_cast<uint64_t>(noise[0]);
    p.offset = static_cast<uint64_t>(noise[1]);
    p.stream = static_cast<uint32_t>(noise[2]);
    p.draw = static_cast<uint32_t>(noise[3]);
    TORCH_CHECK_VALUE(drawable(x), "a sample may hold at most 2^34 elements where noise is drawn");
    if (key.has_value()) step.key = take_key(p, *key, x);
  }
  describe_layout(p, out);
  return step;
}

void launch(const Prepared& step) {
  if (step.x.is_cuda()) {
#if defined(CMSOLVERS_WITH_CUDA)
    const int device = step.x.get_device();
    launch_step_cuda(step.params, device, c10::cuda::getCurrentCUDAStream(device).stream());
#else
    TORCH_CHECK(false, "this build of cmsolvers has no CUDA part; build it with USE_CUDA=1");
#endif
    return;
  }
  launch_step_cpu(step.params);
}

}  // namespace cmsolvers
