// What the fast calls from Python share: arguments that need no checks of the general way.
#pragma once

#include <Python.h>

#include <ATen/core/Tensor.h>

namespace cmsolvers {

// Whether no mode and no transform wants to see the call.
bool plain_context();

// Whether no transform and no subclass sees to the tensor, whose memory is on a CPU or a GPU, and
// it has no tangent.
bool plain(const at::Tensor& tensor);

// A plain tensor without a tangent, or nullptr. Borrowed from the object. In `grad_mode` it must
// not require a gradient either.
const at::Tensor* plain_tensor(PyObject* object, bool grad_mode);

// A Python float or int, infinities and NaN included.
bool real(PyObject* object, double& value);

// The same, finite.
bool number(PyObject* object, double& value);

// A Python int in [0, limit].
bool natural(PyObject* object, uint64_t limit, uint64_t& value);

}  // namespace cmsolvers
