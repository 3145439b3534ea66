// The portable set of lanes: one.
#pragma once

#include "../philox.h"

namespace cmsolvers {
namespace CMS_ISA {

struct Lanes : ScalarLanes {
  static inline U load_words(const uint32_t* p) { return *p; }
  static inline U counting(uint32_t first) { return first; }

  // Philox of each lane; all lanes share the key words where `shared_key` says so.
  template <bool shared_key>
  static inline void philox_lanes(U (&c)[4], U k0, U k1) {
    philox(c, k0, k1);
  }

  // out[4 lane + j] = z[j] of the lane.
  static inline void store_interleaved(const F (&z)[4], float* out) {
    for (int j = 0; j < 4; ++j) out[j] = z[j];
  }
};

}  // namespace CMS_ISA
}  // namespace cmsolvers
