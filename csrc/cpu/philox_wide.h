// Philox on vectors: even and odd lanes apart, each 32-bit word in the low half of 64 bits, so that
// one multiply gives both halves of a product; what is left in the high halves does no harm.
//
// `W` brings the 64-bit operations: set_wide, multiply (low halves), high (>> 32), xor_word, xor3,
// join(even, odd).
#pragma once

#include "../contract/philox.h"
#include "twice.h"

namespace cmsolvers {
namespace CMS_ISA {

// What the lanes of one sample share: the round keys, and the first rounds as far as only the group
// differs.
struct SampleRounds {
  uint64_t k0[10], k1[10];
  uint64_t round1, round2_c0, round2_c2, round3;

  SampleRounds(const SampleKey& key, uint32_t draw) {
    uint32_t a = key.k0, b = key.k1;
    for (int round = 0; round < 10; ++round, a += kPhiloxWeyl0, b += kPhiloxWeyl1) {
      k0[round] = a;
      k1[round] = b;
    }
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * key.c2;
    const uint32_t c0 = static_cast<uint32_t>(product1 >> 32) ^ draw ^ key.k0;
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    round1 = key.c3 ^ k1[0];
    round2_c0 = static_cast<uint32_t>(product1) ^ k0[1];
    round2_c2 = (product0 >> 32) ^ k1[1];
    round3 = static_cast<uint32_t>(product0) ^ k1[2];
  }
};

template <class W, class U>
inline void wide_round(U (&c)[4], U k0, U k1) {
  const U p0 = W::multiply(c[0], W::set_wide(kPhiloxMultiplier0));
  const U p1 = W::multiply(c[2], W::set_wide(kPhiloxMultiplier1));
  c[0] = W::xor3(W::high(p1), c[1], k0);
  c[2] = W::xor3(W::high(p0), c[3], k1);
  c[1] = p1;
  c[3] = p0;
}

// Groups `c0` (in the low halves) of one sample.
template <class W, class U>
inline void wide_sample_rounds(U c0, const SampleRounds& sample, U (&c)[4]) {
  const U m0 = W::set_wide(kPhiloxMultiplier0), m1 = W::set_wide(kPhiloxMultiplier1);
  const U first = W::multiply(c0, m0);
  const U second = W::multiply(W::xor_word(W::high(first), W::set_wide(sample.round1)), m1);
  c[0] = W::xor_word(W::high(second), W::set_wide(sample.round2_c0));
  c[2] = W::xor_word(first, W::set_wide(sample.round2_c2));
  const U p0 = W::multiply(c[0], m0), p1 = W::multiply(c[2], m1);
  c[0] = W::xor3(W::high(p1), second, W::set_wide(sample.k0[2]));
  c[2] = W::xor_word(W::high(p0), W::set_wide(sample.round3));
  c[1] = p1;
  c[3] = p0;
#pragma GCC unroll 7
  for (int round = 3; round < 10; ++round)
    wide_round<W>(c, W::set_wide(sample.k0[round]), W::set_wide(sample.k1[round]));
}

// Groups first, first + 1, ... of one sample, one per lane.
template <class W, class U>
inline void wide_philox_sample(uint32_t first, const SampleRounds& sample, U (&c)[4]) {
  using Both = Twice<W>;
  const U counters = W::counting(first);
  typename Both::U words[4];
  wide_sample_rounds<Both>(typename Both::U{counters, W::high(counters)}, sample, words);
  for (int j = 0; j < 4; ++j) c[j] = W::join(words[j].a, words[j].b);
}

// Each lane has its own counter and key.
template <class W, class U>
inline void wide_philox(U (&c)[4], U k0, U k1) {
  using Both = Twice<W>;
  typename Both::U words[4];
  for (int j = 0; j < 4; ++j) words[j] = {c[j], W::high(c[j])};
  typename Both::U a{k0, W::high(k0)}, b{k1, W::high(k1)};
  const auto w0 = Both::set_word(kPhiloxWeyl0), w1 = Both::set_word(kPhiloxWeyl1);
  for (int round = 0; round < 10; ++round) {
    wide_round<Both>(words, a, b);
    a = Both::add_word(a, w0);
    b = Both::add_word(b, w1);
  }
  for (int j = 0; j < 4; ++j) c[j] = W::join(words[j].a, words[j].b);
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
