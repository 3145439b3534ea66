// What the derivatives of the losses' operators share.
#pragma once

#include <ATen/core/Tensor.h>

namespace cmsolvers {

// Whether a transform of torch.func is at work, where C++ autograd functions are not allowed.
bool transformed();

// Whether the tensor has a tangent of forward-mode differentiation.
bool has_tangent(const at::Tensor& tensor);

// Whether a derivative of some kind is to see what is done to the tensor.
bool followed(const at::Tensor& tensor);

// Throws where the tensor, which is a constant here, is followed.
void check_constant(const char* name, const at::Tensor& tensor);

// Values [B] or [1], to be multiplied with [B, ...].
at::Tensor per_sample(const at::Tensor& values, const at::Tensor& like);

}  // namespace cmsolvers
