#include "derivatives.h"

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/grad_mode.h>

namespace cmsolvers {

bool transformed() {
  const auto& transforms = at::functorch::functorchTLSAccessor();
  if (!transforms) return false;
  try {
    transforms->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    return true;
  }
  return false;
}

bool has_tangent(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->autograd_meta() != nullptr && tensor._fw_grad(0).defined();
}

bool followed(const at::Tensor& tensor) {
  return (tensor.requires_grad() && at::GradMode::is_enabled()) || has_tangent(tensor);
}

void check_constant(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(!followed(tensor), name,
                    " must not require a gradient or carry a tangent: weights are constants here; "
                    "detach it");
}

at::Tensor per_sample(const at::Tensor& values, const at::Tensor& like) {
  std::vector<c10::SymInt> shape(std::max<int64_t>(like.dim(), 1), c10::SymInt(1));
  shape[0] = values.sym_size(0);
  const at::Tensor column = values.reshape_symint(shape);
  return like.dim() == 0 ? column.squeeze(0) : column;
}

}  // namespace cmsolvers
