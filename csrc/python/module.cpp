// The Python module. Operators register themselves: see register.cpp of each.
#include <torch/csrc/utils/pybind.h>

#include "../cpu/instruction_set.h"
#include "build_facts.h"
#include "fast_losses.h"
#include "fastcall.h"

namespace cmsolvers {
namespace {

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

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of cmsolvers; use cmsolvers.ops.";
  m.def("build_info", &build_info);
  m.def("use_instruction_set", &use_instruction_set,
        "Run the CPU kernels with another instruction set of build_info()['instruction_sets'].");
  add_fastcall(m.ptr());
  add_fast_losses(m.ptr());
  add_fast_pairs(m.ptr());
  add_generator(m.ptr());
}

}  // namespace cmsolvers
