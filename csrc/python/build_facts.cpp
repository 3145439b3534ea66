#include "build_facts.h"

namespace cmsolvers {

const BuildFacts& build_facts() {
  static const BuildFacts facts{CMSOLVERS_BUILD_TORCH_VERSION, CMSOLVERS_BUILD_CUDA_VERSION,
                                CMSOLVERS_BUILD_CUDA_ARCHS, CMSOLVERS_BUILD_FLAGS,
                                CMSOLVERS_CSRC_HASH};
  return facts;
}

}  // namespace cmsolvers
