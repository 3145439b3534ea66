#include "plain.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

namespace cmsolvers {

bool plain_context() {
  static const c10::DispatchKeySet special(
      {c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
       c10::DispatchKey::PythonDispatcher, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
       c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::Functionalize,
       c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Tracer});
  return !c10::impl::tls_local_dispatch_key_set().included_.has_any(special) &&
         at::impl::PythonTorchFunctionTLS::stack_len() == 0;
}

bool plain(const at::Tensor& t) {
  if (t.layout() != at::kStrided || !(t.is_cpu() || t.is_cuda())) return false;
  static const c10::DispatchKeySet wrapped(
      {c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
       c10::DispatchKey::Batched, c10::DispatchKey::Functionalize, c10::DispatchKey::Python,
       c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor, c10::DispatchKey::NestedTensor});
  if (t.key_set().has_any(wrapped)) return false;
  return t.unsafeGetTensorImpl()->autograd_meta() == nullptr || !t._fw_grad(0).defined();
}

const at::Tensor* plain_tensor(PyObject* object, bool grad_mode) {
  if (Py_TYPE(object) != reinterpret_cast<PyTypeObject*>(THPVariableClass)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(object);
  if (t.requires_grad() && grad_mode) return nullptr;
  return plain(t) ? &t : nullptr;
}

bool real(PyObject* object, double& value) {
  if (PyFloat_CheckExact(object)) {
    value = PyFloat_AS_DOUBLE(object);
  } else if (PyLong_CheckExact(object)) {
    value = PyLong_AsDouble(object);
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
  } else {
    return false;
  }
  return true;
}

bool number(PyObject* object, double& value) {
  return real(object, value) && std::isfinite(value);
}

bool natural(PyObject* object, uint64_t limit, uint64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  value = PyLong_AsUnsignedLongLong(object);
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  return value <= limit;
}

}  // namespace cmsolvers
