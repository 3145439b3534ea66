// What this binary was built from and for. setup.py defines the values, for build_facts.cpp alone,
// so that an edit anywhere in csrc/ recompiles only that file besides the edited one.
#pragma once

namespace cmsolvers {

struct BuildFacts {
  const char* torch_version;
  const char* cuda_version;  // "" when the CUDA part was left out
  const char* cuda_archs;    // as in TORCH_CUDA_ARCH_LIST, "" when the CUDA part was left out
  const char* flags;         // C++ flags common to all sources
  const char* csrc_hash;     // tools/csrc_hash.py
};

const BuildFacts& build_facts();

}  // namespace cmsolvers
