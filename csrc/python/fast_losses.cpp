// The fast calls of the losses' operators, in the spirit of fastcall.cpp: the plain case goes
// straight to the kernel, in every other case nothing is written and None comes back.
#include "fast_losses.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>

#include "../loss/distance.h"
#include "../loss/forms.h"
#include "../loss/rows.h"
#include "plain.h"
#include "prepare.h"

namespace cmsolvers {
namespace {

bool built_for(const at::Tensor& tensor) {
#if defined(CMSOLVERS_WITH_CUDA)
  return tensor.defined();
#else
  return tensor.is_cpu();
#endif
}

const at::Tensor* plain_doubles(PyObject* object, const at::Tensor& beside) {
  const at::Tensor* found = plain_tensor(object, at::GradMode::is_enabled());
  const bool fits =
      found != nullptr && found->scalar_type() == at::kDouble && found->device() == beside.device();
  return fits ? found : nullptr;
}

// A new reference to a tuple, from tensors that are given up.
PyObject* wrap(at::Tensor* tensors, int n) {
  THPObjectPtr tuple(PyTuple_New(n));
  if (!tuple) return nullptr;
  for (int j = 0; j < n; ++j)
    PyTuple_SET_ITEM(tuple.get(), j, THPVariable_Wrap(std::move(tensors[j])));
  return tuple.release();
}

// Whose noise it is; false where the case is not plain.
bool read_place(StepParams& p, const at::Tensor& x, PyObject* const* args) {
  uint64_t stream = 0, draw = 0;
  constexpr uint64_t kIds = (uint64_t{1} << 56) - 1;
  if (!natural(args[1], 255, stream) || !natural(args[2], 0xFFFFFFFFu, draw) || !drawable(x))
    return false;
  p.stream = static_cast<uint32_t>(stream);
  p.draw = static_cast<uint32_t>(draw);
  if (natural(args[0], ~uint64_t{0}, p.seed)) return natural(args[3], kIds >> 1, p.offset);
  const at::Tensor* key = plain_tensor(args[0], at::GradMode::is_enabled());
  return key != nullptr && describe_key(p, *key, x) && (p.key_width == 2 || draw == 0);
}

// The dtypes of the outputs; false where the case is not plain.
bool read_dtypes(PyObject* object, const at::Tensor& x, int64_t n, at::ScalarType* types) {
  std::fill(types, types + n, x.scalar_type());
  if (object == Py_None) return true;
  if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != n) return false;
  for (int64_t j = 0; j < n; ++j) {
    PyObject* entry = PyTuple_GET_ITEM(object, j);
    DType known;
    if (entry == Py_None) continue;
    if (!THPDtype_Check(entry)) return false;
    types[j] = reinterpret_cast<THPDtype*>(entry)->scalar_type;
    if (!find_dtype(types[j], known)) return false;
  }
  return true;
}

// Python: see FAST in cmsolvers/ops/noising.py.
PyObject* fast_noise_forms(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS  // what throws here is no user's error, but must not end the process
      if (count != 7 || !plain_context()) Py_RETURN_NONE;
  const at::Tensor* x = plain_tensor(args[0], at::GradMode::is_enabled());
  NoiseFormsParams p;
  p.place.noise = true;
  if (x == nullptr || !built_for(*x) || !x->is_contiguous() ||
      !find_dtype(x->scalar_type(), p.place.state))
    Py_RETURN_NONE;
  const at::Tensor* weights = plain_doubles(args[1], *x);
  at::ScalarType types[kMaxForms];
  if (weights == nullptr || !fits_forms(*weights, batch_of(*x)) ||
      !read_place(p.place, *x, args + 2) || !read_dtypes(args[6], *x, weights->size(0), types))
    Py_RETURN_NONE;
  const int n = static_cast<int>(weights->size(0));
  std::vector<at::Tensor> outs(n);
  for (int j = 0; j < n; ++j)
    outs[j] = x->is_cpu() ? at::Tensor(at::detail::empty_cpu(x->sizes(), types[j]))
                          : at::empty_like(*x, x->options().dtype(types[j]));
  if (x->numel() <= 4096) {
    launch_forms(p, *x, *weights, outs);
  } else {
    pybind11::gil_scoped_release no_gil;
    launch_forms(p, *x, *weights, outs);
  }
  return wrap(outs.data(), n);
  END_HANDLE_TH_ERRORS
}

// Python: see FAST in cmsolvers/ops/distance.py.
PyObject* fast_form_distance(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  uint64_t size = 0;
  double c = 0.0;
  if (count != 4 || !plain_context() ||
      !(PyTuple_CheckExact(args[0]) || PyList_CheckExact(args[0])) ||
      !natural(args[2], kSizes - 1, size) || !number(args[3], c))
    Py_RETURN_NONE;
  if (c != 0.0 && !(c >= 1e-15 && c <= 1e15)) Py_RETURN_NONE;
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(args[0]);
  if (n < 1 || n > kMaxTerms) Py_RETURN_NONE;
  std::array<at::Tensor, kMaxTerms> inputs;
  bool requires_grad = false;
  for (Py_ssize_t k = 0; k < n; ++k) {
    const at::Tensor* m = plain_tensor(PySequence_Fast_GET_ITEM(args[0], k), false);
    DType known;
    if (m == nullptr || !built_for(*m) || m->dim() == 0 || !find_dtype(m->scalar_type(), known) ||
        (k > 0 && (m->device() != inputs[0].device() || m->sizes() != inputs[0].sizes())))
      Py_RETURN_NONE;
    requires_grad = requires_grad || m->requires_grad();
    inputs[k] = *m;
  }
  const at::Tensor* weights = plain_doubles(args[1], inputs[0]);
  if (weights == nullptr || !fits_terms(*weights, n, inputs[0].size(0))) Py_RETURN_NONE;
  const at::TensorList list(inputs.data(), n);
  const int64_t kind = static_cast<int64_t>(size);
  const auto run = [&] {
    return requires_grad && at::GradMode::is_enabled()
               ? form_distance_recorded(list, *weights, kind, c)
               : form_distance(list, *weights, kind, c);
  };
  if (inputs[0].numel() <= 4096) return THPVariable_Wrap(run());
  at::Tensor value;
  {
    pybind11::gil_scoped_release no_gil;
    value = run();
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

// Python: see FAST in cmsolvers/ops/pair_rows.py.
PyObject* fast_consistency_rows(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  double data = 0.0, least = 0.0;
  if (count != 4 || !plain_context() || !number(args[2], data) || !number(args[3], least) ||
      !(data > 0.0) || !(least >= 0.0))
    Py_RETURN_NONE;
  const at::Tensor* sigma = plain_tensor(args[0], false);
  if (sigma == nullptr || !built_for(*sigma) || sigma->dim() != 1 ||
      sigma->scalar_type() != at::kDouble)
    Py_RETURN_NONE;
  const at::Tensor* next = plain_tensor(args[1], false);
  if (next == nullptr || next->sizes() != sigma->sizes() || next->device() != sigma->device() ||
      next->scalar_type() != at::kDouble)
    Py_RETURN_NONE;
  auto [noise, residual] = consistency_rows(*sigma, *next, data, least);
  at::Tensor both[2] = {std::move(noise), std::move(residual)};
  return wrap(both, 2);
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"fast_noise_forms",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_noise_forms)), METH_FASTCALL,
     "fast_noise_forms(x0, weights, seed, stream, draw, offset, dtypes) -> (Tensor, ...) or None"},
    {"fast_form_distance",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_form_distance)),
     METH_FASTCALL, "fast_form_distance(inputs, weights, kind, c) -> Tensor or None"},
    {"fast_consistency_rows",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_consistency_rows)),
     METH_FASTCALL,
     "fast_consistency_rows(sigma, sigma_next, sigma_data, sigma_min) -> (Tensor, Tensor) or None"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_losses(PyObject* module) {
  PyModule_AddFunctions(module, methods);
}

}  // namespace cmsolvers
