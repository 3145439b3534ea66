// Sums of noise on the CPU: for a block of elements, one term after the other into sums that stay
// in L1. Compiled for one instruction set, as the kernel of the step is.
#pragma once

#include "../step/cpu_kernel.h"
#include "group.h"

namespace cmsolvers {
namespace CMS_ISA {

struct NoiseTerms {
  int count = 0;
  NoiseTerm terms[kMaxDraws];

  void load(const NoiseSumParams& p, int64_t sample) {
    count = 0;
    for (int k = 0; k < p.n; ++k) {
      const NoiseTerm term = noise_term(p, sample, k);
      if (term.weight != 0.0f) terms[count++] = term;
    }
  }
};

// Adds weight times the normals of `vectors` vectors of groups to sums[], which holds the four
// values of a group in four vectors.
inline void add_noise(const SampleRounds& rounds, float weight, uint32_t group, int vectors,
                      Lanes::F (*sums)[4]) {
  using Both = Twice<Lanes>;
  const Lanes::F w = Lanes::set(weight);
  Lanes::U words[kBlock / kGroupLanes + 2][4];
  for (int v = 0; v < vectors; ++v)
    Lanes::philox_sample(group + v * Lanes::width, rounds, words[v]);
  for (int v = 0; v < vectors; ++v) {
    const Lanes::U(&r)[4] = words[v];
    Both::F even, odd;
    box_muller<Both>(Both::U{r[0], r[2]}, Both::U{r[1], r[3]}, even, odd);
    const Lanes::F z[4] = {even.a, odd.a, even.b, odd.b};
    for (int j = 0; j < 4; ++j) sums[v][j] = Lanes::fma(w, z[j], sums[v][j]);
  }
}

// The sums of n neighbouring elements of one sample, from the group's first element on.
inline void sum_in_sample(const SampleKey& key, const NoiseTerms& terms, uint32_t group, int n,
                          float* out) {
  Lanes::F sums[kBlock / kGroupLanes + 2][4];
  const int vectors = (n + kGroupLanes - 1) / kGroupLanes;
  for (int v = 0; v < vectors; ++v)
    for (int j = 0; j < 4; ++j) sums[v][j] = Lanes::set(0.0f);
  for (int k = 0; k < terms.count; ++k)
    add_noise(SampleRounds(key, terms.terms[k].draw), terms.terms[k].weight, group, vectors, sums);
  for (int v = 0; v < vectors; ++v) Lanes::store_interleaved(sums[v], out + v * kGroupLanes);
}

struct NoiseSumScratch {
  alignas(64) float sums[kBlock + 2 * kGroupLanes], z[kBlock + 2 * kGroupLanes];
};

// Memory positions first .. first + n - 1.
inline void noise_sum_block(const NoiseSumParams& p, const NoiseTerms& terms, int64_t first, int n,
                            NoiseSumScratch& s) {
  int64_t sample, element;
  locate(p.place, first, sample, element);
  const float* result = s.sums;
  if (element + n <= p.place.count && n >= Lanes::width) {  // all in one sample
    const int skip = static_cast<int>(element & 3);
    sum_in_sample(key_of(p.place, sample), terms, static_cast<uint32_t>(element >> 2), n + skip,
                  s.sums);
    result += skip;
  } else {
    std::fill(s.sums, s.sums + n, 0.0f);
    StepParams place = p.place;
    for (int k = 0; k < terms.count; ++k) {
      place.draw = terms.terms[k].draw;
      const float w = terms.terms[k].weight;
      const float* z = fill_noise(place, first, n, s.z, [](int, int) {});
      for (int i = 0; i < n; ++i) s.sums[i] = multiply_add(w, z[i], s.sums[i]);
    }
  }
  store_block(result, p.place.out, p.place.state, first, n);
}

inline void run_noise_sum(const NoiseSumParams& p, int64_t begin, int64_t end) {
  NoiseSumScratch scratch;
  NoiseTerms terms;
  int64_t loaded = -1;
  for (int64_t at = begin; at < end;) {
    int64_t most = std::min<int64_t>(kBlock, end - at);
    const int64_t sample = p.table == nullptr ? 0 : at / p.place.count;
    if (sample != loaded) terms.load(p, loaded = sample);
    if (p.table != nullptr)  // each sample has its own terms: blocks end where samples do
      most = std::min(most, (sample + 1) * p.place.count - at);
    noise_sum_block(p, terms, at, static_cast<int>(most), scratch);
    at += most;
  }
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
