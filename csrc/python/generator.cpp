// The state of torch's CPU generator as it is in memory: torch's own calls make a tensor of it,
// which takes longer than all random numbers of a small step.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <ATen/CPUGeneratorImpl.h>

#include <cstring>
#include <mutex>
#include <new>
#include <optional>
#include <type_traits>

#include "fast_losses.h"

namespace cmsolvers {
namespace {

struct GeneratorState {
  at::mt19937 engine;
  std::optional<float> next_float;
  std::optional<double> next_double;
};
static_assert(std::is_trivially_copyable_v<GeneratorState> && alignof(GeneratorState) <= 8);

// Python: see STATE in cmsolvers/ops/generator.py.
PyObject* cpu_generator_state(PyObject*, PyObject*) {
  HANDLE_TH_ERRORS
  const at::Generator& generator = at::detail::getDefaultCPUGenerator();
  auto* const found = at::check_generator<at::CPUGeneratorImpl>(generator);
  PyObject* const bytes = PyBytes_FromStringAndSize(nullptr, sizeof(GeneratorState));
  if (bytes == nullptr) return nullptr;
  const std::lock_guard<std::mutex> lock(found->mutex_);
  new (PyBytes_AS_STRING(bytes)) GeneratorState{found->engine(), found->next_float_normal_sample(),
                                                found->next_double_normal_sample()};
  return bytes;
  END_HANDLE_TH_ERRORS
}

// Python: see PUT_STATE in cmsolvers/ops/generator.py.
PyObject* put_cpu_generator_state(PyObject*, PyObject* bytes) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(PyBytes_CheckExact(bytes) && PyBytes_GET_SIZE(bytes) == sizeof(GeneratorState),
                   "state must be one that cpu_generator_state returned");
  GeneratorState state;
  std::memcpy(&state, PyBytes_AS_STRING(bytes), sizeof(state));
  const at::Generator& generator = at::detail::getDefaultCPUGenerator();
  auto* const found = at::check_generator<at::CPUGeneratorImpl>(generator);
  const std::lock_guard<std::mutex> lock(found->mutex_);
  found->set_engine(state.engine);
  found->set_next_float_normal_sample(state.next_float);
  found->set_next_double_normal_sample(state.next_double);
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"cpu_generator_state", &cpu_generator_state, METH_NOARGS, "cpu_generator_state() -> bytes"},
    {"put_cpu_generator_state", &put_cpu_generator_state, METH_O,
     "put_cpu_generator_state(bytes) -> None"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_generator(PyObject* module) {
  PyModule_AddFunctions(module, methods);
}

}  // namespace cmsolvers
