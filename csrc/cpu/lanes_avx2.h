// Eight lanes: AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include "philox_wide.h"

namespace cmsolvers {
namespace CMS_ISA {

struct Lanes {
  using F = __m256;
  using U = __m256i;
  static constexpr int width = 8;

  static inline F set(float v) { return _mm256_set1_ps(v); }
  static inline U set_word(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
  static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
  static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static inline F from_signed(U a) { return _mm256_cvtepi32_ps(a); }
  static inline F from_unsigned(U a) {  // both halves are exact, so the one rounding is the fma's
    const F high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
    const F low = _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)));
    return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
  }
  static inline U bits(F a) { return _mm256_castps_si256(a); }
  static inline F from_bits(U a) { return _mm256_castsi256_ps(a); }
  static inline U add_word(U a, U b) { return _mm256_add_epi32(a, b); }
  static inline U sub_word(U a, U b) { return _mm256_sub_epi32(a, b); }
  static inline U and_word(U a, U b) { return _mm256_and_si256(a, b); }
  static inline U xor_word(U a, U b) { return _mm256_xor_si256(a, b); }
  template <int n>
  static inline U shift_left(U a) {
    return _mm256_slli_epi32(a, n);
  }
  template <int n>
  static inline U shift_right_signed(U a) {
    return _mm256_srai_epi32(a, n);
  }
  static inline F select_odd(U k, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_slli_epi32(k, 31)));
  }

  static inline U load_words(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static inline void store_words(U a, uint32_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
  }
  static inline U counting(uint32_t first) {
    return add_word(set_word(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  // For philox_wide.h.
  static inline U set_wide(uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }
  static inline U multiply(U a, U b) { return _mm256_mul_epu32(a, b); }
  static inline U high(U a) { return _mm256_srli_epi64(a, 32); }
  static inline U xor3(U a, U b, U c) { return xor_word(xor_word(a, b), c); }
  static inline U join(U even, U odd) {
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  }
  static inline void philox_sample(uint32_t first, const SampleRounds& sample, U (&c)[4]) {
    wide_philox_sample<Lanes>(first, sample, c);
  }
  static inline void philox_lanes(U (&c)[4], U k0, U k1) { wide_philox<Lanes>(c, k0, k1); }

  static inline void store_interleaved(const F (&z)[4], float* out) {
    const F a = _mm256_unpacklo_ps(z[0], z[1]), b = _mm256_unpackhi_ps(z[0], z[1]);
    const F c = _mm256_unpacklo_ps(z[2], z[3]), d = _mm256_unpackhi_ps(z[2], z[3]);
    const F p = pairs<0>(a, c), q = pairs<1>(a, c), r = pairs<0>(b, d), s = pairs<1>(b, d);
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(p, q, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(r, s, 0x20));
    _mm256_storeu_ps(out + 16, _mm256_permute2f128_ps(p, q, 0x31));
    _mm256_storeu_ps(out + 24, _mm256_permute2f128_ps(r, s, 0x31));
  }

 private:
  template <int upper>
  static inline F pairs(F a, F b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return _mm256_castpd_ps(upper ? _mm256_unpackhi_pd(x, y) : _mm256_unpacklo_pd(x, y));
  }
};

}  // namespace CMS_ISA
}  // namespace cmsolvers
