// For a small state the way to the kernel costs more than the kernel. fast_step takes it in about a
// microsecond in the plain case: valid contiguous tensors of one device, weights that are numbers
// or tensors there, a seed that is an int or a table of keys there, no derivative, no transform and
// no mode. In every other case it writes nothing and returns None, and the caller goes the general
// way, which checks and reports; so nothing here raises.
#include "fastcall.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>

#include "plain.h"
#include "prepare.h"

namespace cmsolvers {
namespace {

// The arguments of fast_step, by position; the last five may be left out.
enum Position {
  kState,
  kModel,
  kArguments,
  kNoiseWeight,
  kSeed,
  kStream,
  kDraw,
  kFirstId,
  kResult,
  kRule,
  kSecond,
  kSecondResult,
  kBasis,
  kClamp,
  kMost
};
constexpr Py_ssize_t kFewest = kRule;

// What a call brings, besides its parameters: borrowed from the caller's objects.
struct Given {
  const at::Tensor* x = nullptr;
  const at::Tensor* inputs[kMaxInputs];
  int n_inputs = 0;
  const at::Tensor* arguments[kWeights];  // the tensors among the arguments
  int n_arguments = 0;
  const at::Tensor* key = nullptr;
  bool grad_mode = true;
};

// One argument, a number or a tensor, into its place; false where the case is not plain.
bool take_argument(StepParams& p, Given& given, int place, PyObject* object) {
  if (number(object, p.numbers[place])) return true;
  const at::Tensor* value = plain_tensor(object, given.grad_mode);
  if (value == nullptr || value->device() != given.x->device()) return false;
  given.arguments[given.n_arguments++] = value;
  return describe_argument(p, place, *value, batch_of(*given.x));
}

// The columns of one tensor [B, count] as arguments; false where the case is not plain.
bool take_columns(StepParams& p, Given& given, int count, PyObject* object) {
  const at::Tensor* value = plain_tensor(object, given.grad_mode);
  DType type;
  if (value == nullptr || value->device() != given.x->device() || value->dim() != 2 ||
      (value->size(0) != batch_of(*given.x) && value->size(0) != 1) || value->size(1) != count ||
      !find_dtype(value->scalar_type(), type))
    return false;
  given.arguments[given.n_arguments++] = value;
  const bool one = value->size(0) == 1;
  const auto* data = static_cast<const char*>(value->const_data_ptr());
  const int64_t apart = value->stride(1) * static_cast<int64_t>(value->element_size());
  for (int j = 0; j < count; ++j)
    p.arguments[j] = {data + j * apart, one ? 0 : value->stride(0), type};
  p.has_tensors = true;
  p.per_sample = !one;
  return true;
}

// What D is, its bounds, and what the second output is; false where the case is not plain.
bool read_modes(StepParams& p, Given& given, PyObject* const* args) {
  PyObject *second = args[kSecond], *basis = args[kBasis], *clamp = args[kClamp];
  const bool weights = p.rule == Rule::weights;
  if (!weights) {
    double scale = 1.0;  // the rule of the network's input makes its own, for another dtype
    if (second != Py_None) p.second = Second::pair;
    const bool own = p.rule == Rule::edm_input && real(second, scale) && scale == 1.0;
    return (second == Py_None || own) && basis == Py_None && clamp == Py_None;
  }
  if (clamp != Py_None) {
    if (!PyTuple_CheckExact(clamp) || PyTuple_GET_SIZE(clamp) != 2 ||
        !real(PyTuple_GET_ITEM(clamp, 0), p.low) || !real(PyTuple_GET_ITEM(clamp, 1), p.high) ||
        !(p.low <= p.high))
      return false;
    p.clamp = true;
  }
  if (second == Py_True) {
    p.second = Second::x0;
  } else if (PyTuple_CheckExact(second)) {
    p.second = Second::pair;
    if (PyTuple_GET_SIZE(second) != 2 || !take_argument(p, given, kS0, PyTuple_GET_ITEM(second, 0)))
      return false;
    if (!take_argument(p, given, kS1, PyTuple_GET_ITEM(second, 1))) return false;
  } else if (second != Py_None) {
    p.second = Second::scaled;
    if (!take_argument(p, given, kS0, second)) return false;
  }
  p.use_x0 = p.clamp || p.second == Second::x0;
  p.numbers[kOut] = 1.0;
  if (basis != Py_None) {
    if (!PyTuple_CheckExact(basis) || PyTuple_GET_SIZE(basis) != 2 ||
        !take_argument(p, given, kSkip, PyTuple_GET_ITEM(basis, 0)) ||
        !take_argument(p, given, kOut, PyTuple_GET_ITEM(basis, 1)))
      return false;
    if (!p.use_x0) p.rule = Rule::folded;
  }
  return p.n_inputs > 0 || (basis == Py_None && !p.use_x0);
}

// All arguments into the parameters; false where the case is not plain.
bool read_arguments(StepParams& p, Given& given, PyObject* const* args) {
  uint64_t which = 0;
  if (args[kRule] != nullptr && !natural(args[kRule], kRules - 1, which)) return false;
  p.rule = static_cast<Rule>(which);
  if (p.rule == Rule::folded || p.n_inputs != input_count(p.rule, p.n_inputs)) return false;
  const bool weights = p.rule == Rule::weights;
  const int count = weights ? p.n_inputs + 1 : argument_count(p.rule, p.n_inputs);
  PyObject* arguments = args[kArguments];
  if (PyTuple_CheckExact(arguments)) {
    if (PyTuple_GET_SIZE(arguments) != count) return false;
    for (int j = 0; j < count; ++j)
      if (!take_argument(p, given, j, PyTuple_GET_ITEM(arguments, j)) ||
          (p.arguments[j].data != nullptr && j >= tensor_count(p.rule, p.n_inputs)))
        return false;
  } else if (!weights || !take_columns(p, given, count, arguments)) {
    return false;
  }
  if (weights && !take_argument(p, given, kZ, args[kNoiseWeight])) return false;
  if (!in_range(p)) return false;
  if (!read_modes(p, given, args)) return false;
  const auto present = [&](int j) { return p.arguments[j].data != nullptr || p.numbers[j] != 0.0; };
  p.noise = weights ? present(kZ) || (p.second == Second::pair && present(kS1))
                    : p.rule == Rule::euler_maruyama && present(0) && present(1);
  if (p.rule == Rule::weights && !p.has_tensors) return true;
  const bool numbers = !p.has_tensors;
  settle_weights(p, given.x->is_cpu());
  // Of numbers the caller learns what overflows; tensors are not read.
  const auto finite = [](double w) { return std::isfinite(w); };
  return !numbers || std::all_of(p.numbers, p.numbers + kWeights, finite);
}

// Whose noise it is, where there is any; false where the case is not plain.
bool read_noise(StepParams& p, Given& given, PyObject* const* args) {
  if (!p.noise) return true;
  uint64_t stream = 0, draw = 0;
  constexpr uint64_t kIds = (uint64_t{1} << 56) - 1;
  if (!natural(args[kStream], 255, stream) || !natural(args[kDraw], 0xFFFFFFFFu, draw) ||
      !drawable(*given.x))
    return false;
  p.stream = static_cast<uint32_t>(stream);
  p.draw = static_cast<uint32_t>(draw);
  if (natural(args[kSeed], ~uint64_t{0}, p.seed))
    return natural(args[kFirstId], kIds >> 1, p.offset);
  const at::Tensor* key = plain_tensor(args[kSeed], given.grad_mode);
  given.key = key;
  return key != nullptr && describe_key(p, *key, *given.x) && (p.key_width == 2 || draw == 0);
}

// Inputs into the parameters; false where the case is not plain.
bool read_inputs(StepParams& p, Given& given, PyObject* inputs) {
  if (!PyTuple_CheckExact(inputs)) return false;
  const at::Tensor& x = *given.x;
  const Py_ssize_t n = PyTuple_GET_SIZE(inputs);
  if (n > kMaxInputs) return false;
  p.n_inputs = static_cast<int>(n);
  p.model = p.state;
  for (Py_ssize_t k = 0; k < n; ++k) {
    const at::Tensor* m = plain_tensor(PyTuple_GET_ITEM(inputs, k), given.grad_mode);
    if (m == nullptr || m->device() != x.device() || !m->is_contiguous() ||
        m->sizes() != x.sizes() || !find_dtype(m->scalar_type(), p.model) ||
        !model_fits(p.model, p.state) ||
        (k > 0 && m->scalar_type() != given.inputs[0]->scalar_type()))
      return false;
    given.inputs[given.n_inputs++] = m;
    p.inputs[k] = m->const_data_ptr();
  }
  return true;
}

// An output: given by the caller, or to be made.
struct Output {
  bool wanted = false;
  at::ScalarType type = at::kFloat;
  at::Tensor tensor;
  PyObject* given = nullptr;

  void make(const at::Tensor& x) {
    if (!wanted || given != nullptr) return;
    tensor = x.is_cpu() ? at::Tensor(at::detail::empty_cpu(x.sizes(), type))
                        : at::empty_like(x, x.options().dtype(type));
  }

  // A new reference.
  PyObject* result() {
    if (given == nullptr) return THPVariable_Wrap(std::move(tensor));
    mark_written(tensor);
    return Py_NewRef(given);
  }
};

// A tensor to write to, in x's layout; it may be x or an input itself only where `in_place`.
bool take_output(Output& output, const Given& given, PyObject* object, bool in_place) {
  const at::Tensor* wanted = plain_tensor(object, given.grad_mode);
  const at::Tensor& x = *given.x;
  if (wanted == nullptr || wanted->device() != x.device() || !wanted->is_contiguous() ||
      wanted->sizes() != x.sizes())
    return false;
  const auto apart = [&](const at::Tensor& t) {
    return (in_place && t.scalar_type() == wanted->scalar_type() &&
            t.const_data_ptr() == wanted->const_data_ptr()) ||
           disjoint(t, *wanted);
  };
  const auto apart_from = [&](const at::Tensor* t) { return apart(*t); };
  output.given = object;
  output.type = wanted->scalar_type();
  output.tensor = *wanted;
  return apart(x) && (given.key == nullptr || disjoint(*given.key, *wanted)) &&
         std::all_of(given.inputs, given.inputs + given.n_inputs, apart_from) &&
         std::all_of(given.arguments, given.arguments + given.n_arguments,
                     [&](const at::Tensor* t) { return disjoint(*t, *wanted); });
}

// Both outputs, as far as they are wanted; false where the case is not plain.
bool read_outputs(StepParams& p, const Given& given, PyObject* const* args, Output& first,
                  Output& second) {
  const at::ScalarType state = given.x->scalar_type();
  first.wanted = args[kResult] != Py_False;
  first.type = second.type = state;
  if (first.wanted && args[kResult] != Py_None &&
      (!take_output(first, given, args[kResult], true) || first.type != state))
    return false;
  second.wanted = p.second != Second::none;
  PyObject* where = args[kSecondResult];
  if (!second.wanted) return first.wanted && where == Py_None;
  if (THPDtype_Check(where))
    second.type = reinterpret_cast<THPDtype*>(where)->scalar_type;
  else if (where != Py_None && !take_output(second, given, where, false))
    return false;
  return find_dtype(second.type, p.second_type) &&
         (first.given == nullptr || second.given == nullptr ||
          disjoint(first.tensor, second.tensor));
}

// Python: see FAST in cmsolvers/ops/step.py.
PyObject* fast_step(PyObject*, PyObject* const* given_args, Py_ssize_t count) {
  HANDLE_TH_ERRORS  // what throws here is no user's error, but must not end the process
      if (count < kFewest || count > kMost || !plain_context()) Py_RETURN_NONE;
  PyObject* args[kMost];
  std::fill(std::copy(given_args, given_args + count, args), args + kMost, Py_None);
  if (count <= kRule) args[kRule] = nullptr;
  Given given;
  given.grad_mode = c10::GradMode::is_enabled();
  const at::Tensor* x = given.x = plain_tensor(args[kState], given.grad_mode);
  Prepared step;
  StepParams& p = step.params;
  if (x == nullptr || !find_dtype(x->scalar_type(), p.state) || !x->is_contiguous()) Py_RETURN_NONE;
#if !defined(CMSOLVERS_WITH_CUDA)
  if (x->is_cuda()) Py_RETURN_NONE;
#endif
  Output first, second;
  if (!read_inputs(p, given, args[kModel]) || !read_arguments(p, given, args) ||
      !read_noise(p, given, args) || !read_outputs(p, given, args, first, second))
    Py_RETURN_NONE;
  first.make(*x);
  second.make(*x);
  step.x = *x;
  p.x = x->const_data_ptr();
  if (first.wanted) p.out = first.tensor.mutable_data_ptr();
  if (second.wanted) p.second_out = second.tensor.mutable_data_ptr();
  describe_layout(p, first.wanted ? first.tensor : second.tensor);
  if (p.total <= 4096) {
    launch(step);
  } else {
    pybind11::gil_scoped_release no_gil;
    launch(step);
  }
  if (!second.wanted) return first.result();
  if (!first.wanted) return second.result();
  THPObjectPtr pair(PyTuple_New(2));
  if (!pair) return nullptr;
  PyTuple_SET_ITEM(pair.get(), 0, first.result());
  PyTuple_SET_ITEM(pair.get(), 1, second.result());
  return pair.release();
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"fast_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_step)),
     METH_FASTCALL,
     "fast_step(x, inputs, arguments, w_z, seed, stream, draw, offset, out, rule=0, second=None, "
     "second_out=None, basis=None, clamp=None) -> Tensor, (Tensor, Tensor) or None"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fastcall(PyObject* module) {
  PyModule_AddFunctions(module, methods);
}

}  // namespace cmsolvers
