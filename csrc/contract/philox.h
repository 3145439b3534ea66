// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011) and the noise contract's use of it (version
// 1).
#pragma once

#include "math.h"

namespace cmsolvers {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

namespace CMS_ISA {

CMS_HD uint32_t high_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
#endif
}

CMS_HD void philox(uint32_t (&c)[4], uint32_t k0, uint32_t k1) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = high_product(kPhiloxMultiplier0, c[0]);
    const uint32_t low0 = kPhiloxMultiplier0 * c[0];
    const uint32_t high1 = high_product(kPhiloxMultiplier1, c[2]);
    const uint32_t low1 = kPhiloxMultiplier1 * c[2];
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}

// What a sample contributes to key and counter.
struct SampleKey {
  uint32_t k0, k1, c2, c3;
};

CMS_HD SampleKey sample_key(uint64_t seed, uint64_t id, uint32_t stream) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(id),
          (static_cast<uint32_t>(id >> 32) & 0xFFFFFFu) | (stream << 24)};
}

// The four normals of elements 4 group .. 4 group + 3 of a sample.
CMS_HD void normal4(const SampleKey& key, uint32_t draw, uint32_t group, float (&z)[4]) {
  uint32_t r[4] = {group, draw, key.c2, key.c3};
  philox(r, key.k0, key.k1);
  box_muller<ScalarLanes>(r[0], r[1], z[0], z[1]);
  box_muller<ScalarLanes>(r[2], r[3], z[2], z[3]);
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
