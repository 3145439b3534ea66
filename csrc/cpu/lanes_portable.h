// The portable set of lanes: one.
#pragma once

#include "../contract/philox.h"

namespace cmsolvers {
namespace CMS_ISA {

// Nothing is worth computing ahead for one lane.
struct SampleRounds {
  SampleKey key;
  uint32_t draw;

  SampleRounds(const SampleKey& sample_key, uint32_t which) : key(sample_key), draw(which) {}
};

struct Lanes : ScalarLanes {
  static inline U load_words(const uint32_t* p) { return *p; }
  static inline void store_words(U a, uint32_t* p) { *p = a; }
  static inline U counting(uint32_t first) { return first; }

  static inline void philox_sample(uint32_t first, const SampleRounds& sample, U (&c)[4]) {
    c[0] = first;
    c[1] = sample.draw;
    c[2] = sample.key.c2;
    c[3] = sample.key.c3;
    philox(c, sample.key.k0, sample.key.k1);
  }
  static inline void philox_lanes(U (&c)[4], U k0, U k1) { philox(c, k0, k1); }

  // out[4 lane + j] = z[j] of the lane.
  static inline void store_interleaved(const F (&z)[4], float* out) {
    for (int j = 0; j < 4; ++j) out[j] = z[j];
  }
};

}  // namespace CMS_ISA
}  // namespace cmsolvers
