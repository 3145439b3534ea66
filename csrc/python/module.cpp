// Kernels of the operators whose schemas cmsolvers/ops/registration.py defines, and the Python
// module.
#include <ATen/Functions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "build_facts.h"
#include "fastcall.h"
#include "prepare.h"

namespace cmsolvers {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Doubles = c10::ArrayRef<double>;

at::Tensor weighted_step(const at::Tensor& x, at::TensorList inputs, Doubles numbers,
                         at::TensorList tensors, at::IntArrayRef places, int64_t rule,
                         at::IntArrayRef noise, const OptionalTensor& key, Doubles clamp) {
  at::Tensor out = at::empty_like(x);
  launch(prepare(out, std::nullopt, x, inputs, {numbers, tensors, places, rule}, noise, key, clamp,
                 0));
  return out;
}

std::tuple<at::Tensor, at::Tensor> weighted_step_two(const at::Tensor& x, at::TensorList inputs,
                                                     Doubles numbers, at::TensorList tensors,
                                                     at::IntArrayRef places, int64_t rule,
                                                     at::IntArrayRef noise,
                                                     const OptionalTensor& key, Doubles clamp,
                                                     int64_t second, at::ScalarType second_dtype) {
  at::Tensor out = at::empty_like(x);
  at::Tensor other = at::empty_like(x, x.options().dtype(second_dtype));
  launch(
      prepare(out, other, x, inputs, {numbers, tensors, places, rule}, noise, key, clamp, second));
  return {out, other};
}

void weighted_step_out(const OptionalTensor& out, const OptionalTensor& second_out,
                       const at::Tensor& x, at::TensorList inputs, Doubles numbers,
                       at::TensorList tensors, at::IntArrayRef places, int64_t rule,
                       at::IntArrayRef noise, const OptionalTensor& key, Doubles clamp,
                       int64_t second) {
  launch(prepare(out, second_out, x, inputs, {numbers, tensors, places, rule}, noise, key, clamp,
                 second));
  if (out.has_value()) mark_written(*out);
  if (second_out.has_value()) mark_written(*second_out);
}

pybind11::dict build_info() {
  const BuildFacts& facts = build_facts();
  pybind11::dict info;
  info["built_with_torch"] = facts.torch_version;
  info["compiler"] = "GCC-compatible " __VERSION__;
  info["flags"] = facts.flags;
#if defined(CMSOLVERS_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_version"] = facts.cuda_version;
  info["cuda_architectures"] = facts.cuda_archs;
  info["csrc_hash"] = facts.csrc_hash;
  info["instruction_set"] = instruction_set_name(instruction_set());
  pybind11::list usable;
  for (int level = 0; level <= best_instruction_set(); ++level)
    usable.append(instruction_set_name(level));
  info["instruction_sets"] = usable;
  return info;
}

void use_instruction_set(const std::string& name) {
  for (int level = 0; level <= best_instruction_set(); ++level)
    if (name == instruction_set_name(level)) return set_instruction_set(level);
  throw std::invalid_argument("instruction set must be one that build_info lists; got " + name);
}

}  // namespace

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("weighted_step", &weighted_step);
  m.impl("weighted_step_two", &weighted_step_two);
  m.impl("weighted_step_out", &weighted_step_out);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("weighted_step", &weighted_step);
  m.impl("weighted_step_two", &weighted_step_two);
  m.impl("weighted_step_out", &weighted_step_out);
}
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of cmsolvers; use cmsolvers.ops.";
  m.def("build_info", &build_info);
  m.def("use_instruction_set", &use_instruction_set,
        "Run the CPU kernels with another instruction set of build_info()['instruction_sets'].");
  add_fastcall(m.ptr());
}

}  // namespace cmsolvers
