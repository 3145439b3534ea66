// For a small state the way to the kernel costs more than the kernel. fast_step takes it in well
// under a microsecond where nothing special is asked: valid plain dense tensors of one device,
// weights that are numbers or plain tensors there, an int seed, no derivative, no transform and no
// mode. In every other case it answers
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

// What a call brings, besides its parameters: borrowed from the caller's objects.
struct Given {
  const at::Tensor* x = nullptr;
  const at::Tensor* inputs[kMaxInputs];
  const at::Tensor* arguments[kWeights];
  int n_arguments = 0;  // tensors among the arguments
  bool grad_mode = true;
};

// One argument, a number or a tensor, into its place; false where the case is not plain.
bool take_argument(StepParams& p, Given& given, int place, PyObject* object) {
  if (number(object, p.numbers[place])) return true;
  const at::Tensor* value = plain_tensor(object, given.grad_mode);
  if (value == nullptr || value->device() != given.x->device()) return false;
  const int64_t batch = given.x->dim() == 0 ? 1 : given.x->size(0);
  given.arguments[given.n_arguments++] = value;
  return describe_argument(p, place, *value, batch);
}

// The columns of one tensor [B, count] as arguments; false where the case is not plain.
bool take_columns(StepParams& p, Given& given, int count, PyObject* object) {
  const at::Tensor* value = plain_tensor(object, given.grad_mode);
  const int64_t batch = given.x->dim() == 0 ? 1 : given.x->size(0);
  if (value == nullptr || value->device() != given.x->device() || value->dim() != 2 ||
      (value->size(0) != batch && value->size(0) != 1) || value->size(1) != count ||
      !supported(value->scalar_type()))
    return false;
  given.arguments[given.n_arguments++] = value;
  const bool one = value->size(0) == 1;
  const auto* data = static_cast<const char*>(value->const_data_ptr());
  const int64_t apart = value->stride(1) * static_cast<int64_t>(value->element_size());
  for (int j = 0; j < count; ++j)
    p.arguments[j] = {data + j * apart, one ? 0 : value->stride(0), dtype_of(value->scalar_type())};
  p.has_tensors = true;
  p.per_sample = !one;
  return true;
}

// All arguments into the parameters; false where the case is not plain.
bool read_arguments(StepParams& p, Given& given, PyObject* rule, PyObject* arguments,
                    PyObject* w_z) {
  uint64_t which = 0;
  if (rule != nullptr && !natural(rule, kRules - 1, which)) return false;
  p.rule = static_cast<Rule>(which);
  if (p.rule == Rule::folded || p.n_inputs != input_count(p.rule, p.n_inputs)) return false;
  const bool weights = p.rule == Rule::weights;
  const int count = weights ? p.n_inputs + 1 : argument_count(p.rule, p.n_inputs);
  if (PyTuple_CheckExact(arguments)) {
    if (PyTuple_GET_SIZE(arguments) != count) return false;
    for (int j = 0; j < count; ++j)
      if (!take_argument(p, given, j, PyTuple_GET_ITEM(arguments, j))) return false;
  } else if (!weights || !take_columns(p, given, count, arguments)) {
    return false;
  }
  if (weights && !take_argument(p, given, kZ, w_z)) return false;
  if (p.rule == Rule::consistency && (p.arguments[1].data || p.arguments[2].data)) return false;
  p.noise = weights ? p.arguments[kZ].data != nullptr || p.numbers[kZ] != 0.0
                    : p.rule == Rule::euler_maruyama;
  if (!weights || p.has_tensors) settle_weights(p, given.x->is_cpu());
  return true;
}

// Inputs into the parameters; false where the case is not plain.
bool read_inputs(StepParams& p, Given& given, PyObject* inputs) {
  if (!PyTuple_CheckExact(inputs)) return false;
  const at::Tensor& x = *given.x;
  const Py_ssize_t n = PyTuple_GET_SIZE(inputs);
  if (n > kMaxInputs) return false;
  p.n_inputs = static_cast<int>(n);
  p.state = dtype_of(x.scalar_type());
  p.model = p.state;
  for (Py_ssize_t k = 0; k < n; ++k) {
    const at::Tensor* m = plain_tensor(PyTuple_GET_ITEM(inputs, k), given.grad_mode);
    if (m == nullptr || m->device() != x.device() || !m->is_contiguous() ||
        m->sizes() != x.sizes() || !fits(m->scalar_type(), x.scalar_type()) ||
        (k > 0 && m->scalar_type() != given.inputs[0]->scalar_type()))
      return false;
    p.model = dtype_of(m->scalar_type());
    given.inputs[k] = m;
    p.inputs[k] = m->const_data_ptr();
  }
  return true;
}

// fast_step(x, inputs, arguments, w_z, seed, stream, draw, offset, out, rule=0); for the rule of
// the weights themselves `arguments` is (w_x, w_1, ..., w_n), else w_z is not read.
PyObject* fast_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS  // what throws here is no user's error, but must not end the process
      if (count < 9 || count > 10 || !plain_context()) Py_RETURN_NONE;
  Given given;
  given.grad_mode = c10::GradMode::is_enabled();
  const at::Tensor* x = given.x = plain_tensor(args[0], given.grad_mode);
  if (x == nullptr || !supported(x->scalar_type()) || !x->is_contiguous()) Py_RETURN_NONE;
#if !defined(CMSOLVERS_WITH_CUDA)
  if (x->is_cuda()) Py_RETURN_NONE;
#endif
  Prepared step;
  StepParams& p = step.params;
  if (!read_inputs(p, given, args[1])) Py_RETURN_NONE;
  if (!read_arguments(p, given, count == 10 ? args[9] : nullptr, args[2], args[3])) Py_RETURN_NONE;
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
    const at::Tensor* wanted = plain_tensor(args[8], given.grad_mode);
    if (wanted == nullptr || wanted->scalar_type() != x->scalar_type() ||
        wanted->device() != x->device() || !wanted->is_contiguous() ||
        wanted->sizes() != x->sizes())
      Py_RETURN_NONE;
    const auto apart = [&](const at::Tensor& t) {
      return (t.scalar_type() == wanted->scalar_type() &&
              t.const_data_ptr() == wanted->const_data_ptr()) ||
             disjoint(t, *wanted);
    };
    if (!apart(*x)) Py_RETURN_NONE;
    for (int k = 0; k < p.n_inputs; ++k)
      if (!apart(*given.inputs[k])) Py_RETURN_NONE;
    for (int j = 0; j < given.n_arguments; ++j)
      if (!disjoint(*given.arguments[j], *wanted)) Py_RETURN_NONE;
    out = *wanted;
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
     "fast_step(x, inputs, arguments, w_z, seed, stream, draw, offset, out, rule=0) -> Tensor or "
     "None"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fastcall(PyObject* module) {
  PyModule_AddFunctions(module, methods);
}

}  // namespace cmsolvers
