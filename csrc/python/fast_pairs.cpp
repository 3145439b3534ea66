// Fast calls for what a loss does around its networks on small batches: a look at its levels, the
// weights of a pair, the reduction.
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <limits>

#include "../loss/reduction.h"
#include "../loss/rows.h"
#include "fast_losses.h"
#include "plain.h"
#include "prepare.h"

namespace cmsolvers {
namespace {

// Doubles [B], or nullptr.
const at::Tensor* column(PyObject* object, bool constant) {
  const at::Tensor* found = plain_tensor(object, constant);
  const bool fits = found != nullptr && found->dim() == 1 && found->scalar_type() == at::kDouble;
  return fits ? found : nullptr;
}

// A new reference to a tuple of tensors that are given up; those that are undefined are left out.
PyObject* wrap(at::Tensor* tensors, int n) {
  while (n > 0 && !tensors[n - 1].defined()) --n;
  THPObjectPtr tuple(PyTuple_New(n));
  if (!tuple) return nullptr;
  for (int j = 0; j < n; ++j)
    PyTuple_SET_ITEM(tuple.get(), j, THPVariable_Wrap(std::move(tensors[j])));
  return tuple.release();
}

constexpr long kEqual = 1, kSomeZero = 2, kAllZero = 4;

// Python: see LOOK in cmsolvers/ops/pair_rows.py.
PyObject* look_at_levels(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  double most = 0.0;
  if (count != 4 || !plain_context() || !real(args[3], most)) Py_RETURN_NONE;
  const at::Tensor* x = plain_tensor(args[0], false);
  const at::Tensor* high = column(args[1], true);
  const at::Tensor* low = args[2] == args[1] ? high : column(args[2], true);
  DType known;
  if (x == nullptr || high == nullptr || low == nullptr || x->dim() == 0 ||
      !find_dtype(x->scalar_type(), known) || !x->is_cpu() || !high->is_cpu() || !low->is_cpu() ||
      high->requires_grad() || low->requires_grad() || high->size(0) != x->size(0) ||
      low->size(0) != x->size(0))
    Py_RETURN_NONE;
  const double* const t = high->const_data_ptr<double>();
  const double* const s = low->const_data_ptr<double>();
  const int64_t batch = x->size(0), t_step = high->stride(0), s_step = low->stride(0);
  most = std::min(most, std::numeric_limits<double>::max());
  int64_t equal = 0, zero = 0;
  bool valid = true;
  for (int64_t b = 0; b < batch; ++b) {
    const double above = t[b * t_step], below = s[b * s_step];
    valid = valid && above > 0.0 && above <= most && below >= 0.0 && below <= above;
    equal += above == below;
    zero += below == 0.0;
  }
  if (!valid) Py_RETURN_NONE;
  return PyLong_FromLong((equal > 0 ? kEqual : 0) | (zero > 0 ? kSomeZero : 0) |
                         (zero == batch ? kAllZero : 0));
  END_HANDLE_TH_ERRORS
}

// Python: see ALIKE in cmsolvers/ops/pair_rows.py.
PyObject* alike(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 2 || !plain_context()) Py_RETURN_FALSE;
  const at::Tensor* a = plain_tensor(args[0], false);
  const at::Tensor* b = args[1] == args[0] ? a : plain_tensor(args[1], false);
  DType known;
  if (a == nullptr || b == nullptr || b->dim() == 0 || !find_dtype(b->scalar_type(), known) ||
      a->scalar_type() != b->scalar_type() || a->sizes() != b->sizes() ||
      a->device() != b->device())
    Py_RETURN_FALSE;
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

// Python: see FAST_INPUTS in cmsolvers/ops/pair_rows.py.
PyObject* fast_pair_inputs(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  double data = 0.0, least = 0.0, factor = 0.0;
  if (count != 5 || !plain_context() || !number(args[2], data) || !number(args[3], least) ||
      !number(args[4], factor) || !(data > 0.0) || !(least >= 0.0))
    Py_RETURN_NONE;
  const at::Tensor* sigma = column(args[0], true);
  const at::Tensor* next = column(args[1], true);
  if (sigma == nullptr || next == nullptr || next->sizes() != sigma->sizes() ||
      next->device() != sigma->device())
    Py_RETURN_NONE;
#if !defined(CMSOLVERS_WITH_CUDA)
  if (!sigma->is_cpu()) Py_RETURN_NONE;
#endif
  PairInputs made = pair_inputs(*sigma, *next, data, least, factor);
  at::Tensor all[4] = {std::move(made.noise), std::move(made.residual), std::move(made.told[0]),
                       std::move(made.told[1])};
  return wrap(all, 4);
  END_HANDLE_TH_ERRORS
}

// Python: see FAST_MEAN in cmsolvers/ops/reduction.py.
PyObject* fast_reduced(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  double scale = 0.0;
  if (count != 4 || !plain_context() || !number(args[2], scale) || !THPDtype_Check(args[3]))
    Py_RETURN_NONE;
  const at::Tensor* value = column(args[0], false);
  if (value == nullptr || !value->is_cpu() || !value->is_contiguous() || value->numel() == 0)
    Py_RETURN_NONE;
  const at::Tensor* weight = nullptr;
  if (args[1] != Py_None) {
    weight = column(args[1], true);
    if (weight == nullptr || weight->requires_grad() || !weight->is_cpu() ||
        !weight->is_contiguous() || weight->numel() != value->numel())
      Py_RETURN_NONE;
  }
  const at::ScalarType type = reinterpret_cast<THPDtype*>(args[3])->scalar_type;
  if (type != at::kDouble && type != at::kFloat) Py_RETURN_NONE;
  auto found = reduced(*value, weight == nullptr ? at::Tensor() : *weight, scale, type);
  if (!found.has_value()) Py_RETURN_NONE;
  at::Tensor both[2] = {std::move(std::get<0>(*found)), std::move(std::get<1>(*found))};
  return wrap(both, 2);
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"look_at_levels", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&look_at_levels)),
     METH_FASTCALL, "look_at_levels(x0, t, s, most) -> int or None"},
    {"alike", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&alike)), METH_FASTCALL,
     "alike(a, b) -> bool"},
    {"fast_pair_inputs",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_pair_inputs)), METH_FASTCALL,
     "fast_pair_inputs(sigma, sigma_next, sigma_data, sigma_min, noise_factor) -> (Tensor, ...) or "
     "None"},
    {"fast_reduced", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_reduced)),
     METH_FASTCALL, "fast_reduced(value, weight, scale, dtype) -> (Tensor, Tensor) or None"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_pairs(PyObject* module) {
  PyModule_AddFunctions(module, methods);
}

}  // namespace cmsolvers
