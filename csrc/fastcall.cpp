// For a small state the way to the kernel costs more than the kernel. fast_step takes it in well
// under a microsecond where nothing special is asked: valid plain dense tensors of one device, host
// weights, an int seed, no derivative, no transform and no mode. In every other case it answers
// None and the caller goes the general way, which checks and reports; so nothing here raises.
#include "fastcall.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

#include "prepare.h"

namespace cmsolvers {
namespace {

bool plain_context() {
  static const c10::DispatchKeySet special(
      {c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
       c10::DispatchKey::PythonDispatcher, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
       c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::Functionalize,
       c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Tracer});
  return !c10::impl::tls_local_dispatch_key_set().included_.has_any(special) &&
         at::impl::PythonTorchFunctionTLS::stack_len() == 0;
}

// A plain tensor that needs no derivative, or nullptr. Borrowed from the object.
const at::Tensor* plain_tensor(PyObject* object, bool grad_mode) {
  if (Py_TYPE(object) != reinterpret_cast<PyTypeObject*>(THPVariableClass)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(object);
  if (t.layout() != at::kStrided || !(t.is_cpu() || t.is_cuda())) return nullptr;
  static const c10::DispatchKeySet wrapped(
      {c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
       c10::DispatchKey::Functionalize, c10::DispatchKey::Python, c10::DispatchKey::Negative,
       c10::DispatchKey::ZeroTensor, c10::DispatchKey::NestedTensor});
  if (t.key_set().has_any(wrapped)) return nullptr;
  if (t.requires_grad() && grad_mode) return nullptr;
  if (t.unsafeGetTensorImpl()->autograd_meta() != nullptr && t._fw_grad(0).defined())
    return nullptr;
  return &t;
}

bool disjoint(const at::Tensor& a, const at::Tensor& b) {
  const char* p = static_cast<const char*>(a.const_data_ptr());
  const char* q = static_cast<const char*>(b.const_data_ptr());
  return p + a.nbytes() <= q || q + b.nbytes() <= p;
}

bool number(PyObject* object, double& value) {
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
  return std::isfinite(value);
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

bool supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

// A model output goes with a state of its own dtype or of higher precision.
bool fits(at::ScalarType model, at::ScalarType state) {
  if (model == state) return true;
  return supported(model) &&
         (state == at::kDouble || (state == at::kFloat && model != at::kDouble));
}

// Inputs and weights into the parameters; false where the case is not plain.
bool read_terms(StepParams& p, const at::Tensor& x, PyObject* inputs, PyObject* weights,
                const at::Tensor** terms, bool grad_mode) {
  if (!PyTuple_CheckExact(inputs) || !PyTuple_CheckExact(weights)) return false;
  const Py_ssize_t n = PyTuple_GET_SIZE(inputs);
  if (n > kMaxInputs || PyTuple_GET_SIZE(weights) != n + 1) return false;
  p.n_inputs = static_cast<int>(n);
  p.state = dtype_of(x.scalar_type());
  p.model = p.state;
  if (!number(PyTuple_GET_ITEM(weights, 0), p.weights[kX])) return false;
  for (Py_ssize_t k = 0; k < n; ++k) {
    const at::Tensor* m = plain_tensor(PyTuple_GET_ITEM(inputs, k), grad_mode);
    if (m == nullptr || m->device() != x.device() || !m->is_contiguous() ||
        m->sizes() != x.sizes() || !fits(m->scalar_type(), x.scalar_type()) ||
        (k > 0 && m->scalar_type() != terms[0]->scalar_type()))
      return false;
    p.model = dtype_of(m->scalar_type());
    if (!number(PyTuple_GET_ITEM(weights, k + 1), p.weights[kInput + k])) return false;
    terms[k] = m;
    p.inputs[k] = m->const_data_ptr();
  }
  return true;
}

// fast_step(x, inputs, weights, w_z, seed, stream, draw, offset, out)
PyObject* fast_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS  // what throws here is no user's error, but must not end the process
      if (count != 9 || !plain_context()) Py_RETURN_NONE;
  const bool grad_mode = c10::GradMode::is_enabled();
  const at::Tensor* x = plain_tensor(args[0], grad_mode);
  if (x == nullptr || !supported(x->scalar_type()) || !x->is_contiguous()) Py_RETURN_NONE;
#if !defined(CMSOLVERS_WITH_CUDA)
  if (x->is_cuda()) Py_RETURN_NONE;
#endif
  Prepared step;
  StepParams& p = step.params;
  const at::Tensor* terms[kMaxInputs];
  if (!read_terms(p, *x, args[1], args[2], terms, grad_mode)) Py_RETURN_NONE;
  if (!number(args[3], p.weights[kZ])) Py_RETURN_NONE;
  p.noise = p.weights[kZ] != 0.0;
  if (p.noise) {
    uint64_t stream = 0, draw = 0;
    constexpr uint64_t kIds = (uint64_t{1} << 56) - 1;
    if (!natural(args[4], ~uint64_t{0}, p.seed) || !natural(args[5], 255, stream) ||
        !natural(args[6], 0xFFFFFFFFu, draw) || !natural(args[7], kIds >> 1, p.offset) ||
        x->numel() > int64_t{1} << 34)
      Py_RETURN_NONE;
    p.stream = static_cast<uint32_t>(stream);
    p.draw = static_cast<uint32_t>(draw);
  }
  at::Tensor out;
  if (args[8] != Py_None) {
    const at::Tensor* given = plain_tensor(args[8], grad_mode);
    if (given == nullptr || given->scalar_type() != x->scalar_type() ||
        given->device() != x->device() || !given->is_contiguous() || given->sizes() != x->sizes())
      Py_RETURN_NONE;
    const auto apart = [&](const at::Tensor& t) {
      return (t.scalar_type() == given->scalar_type() &&
              t.const_data_ptr() == given->const_data_ptr()) ||
             disjoint(t, *given);
    };
    if (!apart(*x)) Py_RETURN_NONE;
    for (int k = 0; k < p.n_inputs; ++k)
      if (!apart(*terms[k])) Py_RETURN_NONE;
    out = *given;
  }
  if (!out.defined())
    out = x->is_cpu() ? at::Tensor(at::detail::empty_cpu(x->sizes(), x->scalar_type()))
                      : at::empty_like(*x);
  step.x = *x;
  p.x = x->const_data_ptr();
  p.out = out.mutable_data_ptr();
  describe_layout(p, out);
  if (p.total <= 4096) {
    launch(step);
  } else {
    pybind11::gil_scoped_release no_gil;
    launch(step);
  }
  if (args[8] != Py_None) {
    mark_written(out);
    return Py_NewRef(args[8]);
  }
  return THPVariable_Wrap(std::move(out));
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"fast_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_step)),
     METH_FASTCALL,
     "fast_step(x, inputs, weights, w_z, seed, stream, draw, offset, out) -> Tensor or None"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fastcall(PyObject* module) {
  PyModule_AddFunctions(module, methods);
}

}  // namespace cmsolvers
