// Eight lanes: AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include "../philox.h"

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
  static inline U counting(uint32_t first) {
    return add_word(set_word(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  // Even and odd lanes apart, each in the low half of 64 bits: one multiply gives both halves of a product, and what is
  // left in the high halves does no harm.
  template <bool shared_key>
  static inline void philox_lanes(U (&c)[4], U k0, U k1) {
    const U m0 = _mm256_set1_epi64x(kPhiloxMultiplier0), m1 = _mm256_set1_epi64x(kPhiloxMultiplier1);
    const U w0 = set_word(kPhiloxWeyl0), w1 = set_word(kPhiloxWeyl1);
    U odd[4];
    for (int j = 0; j < 4; ++j) odd[j] = _mm256_srli_epi64(c[j], 32);
    U odd_k0 = shared_key ? k0 : _mm256_srli_epi64(k0, 32);
    U odd_k1 = shared_key ? k1 : _mm256_srli_epi64(k1, 32);
    for (int round = 0; round < 10; ++round) {
      half_round(c, k0, k1, m0, m1);
      half_round(odd, shared_key ? k0 : odd_k0, shared_key ? k1 : odd_k1, m0, m1);
      k0 = add_word(k0, w0);
      k1 = add_word(k1, w1);
      if (!shared_key) {
        odd_k0 = add_word(odd_k0, w0);
        odd_k1 = add_word(odd_k1, w1);
      }
    }
    for (int j = 0; j < 4; ++j)
      c[j] = _mm256_blend_epi32(c[j], _mm256_slli_epi64(odd[j], 32), 0xAA);
  }

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
  static inline void half_round(U (&c)[4], U k0, U k1, U m0, U m1) {
    const U p0 = _mm256_mul_epu32(c[0], m0), p1 = _mm256_mul_epu32(c[2], m1);
    c[0] = xor_word(xor_word(_mm256_srli_epi64(p1, 32), c[1]), k0);
    c[2] = xor_word(xor_word(_mm256_srli_epi64(p0, 32), c[3]), k1);
    c[1] = p1;
    c[3] = p0;
  }
  template <int high>
  static inline F pairs(F a, F b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return _mm256_castpd_ps(high ? _mm256_unpackhi_pd(x, y) : _mm256_unpacklo_pd(x, y));
  }
};

}  // namespace CMS_ISA
}  // namespace cmsolvers
