#include "tensors.h"

namespace cmsolvers {
namespace {

int64_t bytes_spanned(const at::Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return (last + 1) * static_cast<int64_t>(t.element_size());
}

}  // namespace

bool find_dtype(at::ScalarType type, DType& found) {
  switch (type) {
    case at::kDouble:
      found = DType::f64;
      return true;
    case at::kFloat:
      found = DType::f32;
      return true;
    case at::kHalf:
      found = DType::f16;
      return true;
    case at::kBFloat16:
      found = DType::bf16;
      return true;
    default:
      return false;
  }
}

DType dtype_of(at::ScalarType type) {
  DType found = DType::f32;
  TORCH_CHECK_TYPE(find_dtype(type, found), "expected float64, float32, float16 or bfloat16; got ",
                   type);
  return found;
}

bool model_fits(DType model, DType state) {
  return model == state || size_of(model) < size_of(state);
}

int64_t batch_of(const at::Tensor& tensor) {
  return tensor.dim() == 0 ? 1 : tensor.size(0);
}

bool disjoint(const at::Tensor& a, const at::Tensor& b) {
  const char* p = static_cast<const char*>(a.const_data_ptr());
  const char* q = static_cast<const char*>(b.const_data_ptr());
  return p + bytes_spanned(a) <= q || q + bytes_spanned(b) <= p;
}

bool drawable(const at::Tensor& tensor) {
  const int64_t batch = batch_of(tensor);
  return batch == 0 || tensor.numel() / batch <= int64_t{1} << 34;
}

bool describe_key(StepParams& p, const at::Tensor& key, const at::Tensor& x) {
  const int64_t batch = batch_of(x);
  if (key.scalar_type() != at::kLong || key.device() != x.device() || !key.is_contiguous() ||
      key.dim() != 2 || (key.size(1) != 2 && key.size(1) != 3) ||
      (key.size(0) != batch && key.size(0) != 1))
    return false;
  p.key = key.const_data_ptr<int64_t>();
  p.key_width = static_cast<int>(key.size(1));
  p.key_per_sample = key.size(0) == batch;
  return true;
}

at::Tensor take_key(StepParams& p, const at::Tensor& key, const at::Tensor& x) {
  TORCH_CHECK_TYPE(key.scalar_type() == at::kLong, "key must be int64; got ", key.scalar_type());
  TORCH_CHECK_VALUE(key.device() == x.device(), "key must be on the device of x, ", x.device(),
                    "; got ", key.device());
  at::Tensor kept = key.contiguous();
  TORCH_CHECK_VALUE(describe_key(p, kept, x), "key must have shape [", batch_of(x),
                    ", 2] or [1, 2], or with draws [", batch_of(x), ", 3] or [1, 3]; got ",
                    key.sizes());
  TORCH_CHECK_VALUE(p.key_width == 2 || p.draw == 0,
                    "draw must be 0 where the key holds draws; got ", p.draw);
  return kept;
}

void mark_written(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace cmsolvers
