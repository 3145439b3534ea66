// Sixteen lanes: AVX-512 F, DQ, BW, VL.
#pragma once

#include <immintrin.h>

#include "../philox.h"

namespace cmsolvers {
namespace CMS_ISA {

struct Lanes {
  using F = __m512;
  using U = __m512i;
  static constexpr int width = 16;

  static inline F set(float v) { return _mm512_set1_ps(v); }
  static inline U set_word(uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
  static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
  static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static inline F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static inline F from_signed(U a) { return _mm512_cvtepi32_ps(a); }
  static inline F from_unsigned(U a) { return _mm512_cvtepu32_ps(a); }
  static inline U bits(F a) { return _mm512_castps_si512(a); }
  static inline F from_bits(U a) { return _mm512_castsi512_ps(a); }
  static inline U add_word(U a, U b) { return _mm512_add_epi32(a, b); }
  static inline U sub_word(U a, U b) { return _mm512_sub_epi32(a, b); }
  static inline U and_word(U a, U b) { return _mm512_and_si512(a, b); }
  static inline U xor_word(U a, U b) { return _mm512_xor_si512(a, b); }
  template <int n>
  static inline U shift_left(U a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  static inline U shift_right_signed(U a) {
    return _mm512_srai_epi32(a, n);
  }
  static inline F select_odd(U k, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_test_epi32_mask(k, set_word(1u)), b, a);
  }

  static inline U load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static inline U counting(uint32_t first) {
    return add_word(set_word(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }

  // As in lanes_avx2.h: even and odd lanes apart, in the low halves of 64 bits.
  template <bool shared_key>
  static inline void philox_lanes(U (&c)[4], U k0, U k1) {
    const U m0 = _mm512_set1_epi64(kPhiloxMultiplier0), m1 = _mm512_set1_epi64(kPhiloxMultiplier1);
    const U w0 = set_word(kPhiloxWeyl0), w1 = set_word(kPhiloxWeyl1);
    U odd[4];
    for (int j = 0; j < 4; ++j) odd[j] = _mm512_srli_epi64(c[j], 32);
    U odd_k0 = shared_key ? k0 : _mm512_srli_epi64(k0, 32);
    U odd_k1 = shared_key ? k1 : _mm512_srli_epi64(k1, 32);
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
      c[j] = _mm512_mask_shuffle_epi32(c[j], 0xAAAA, odd[j], static_cast<_MM_PERM_ENUM>(0xA0));
  }

  static inline void store_interleaved(const F (&z)[4], float* out) {
    const F a = _mm512_unpacklo_ps(z[0], z[1]), b = _mm512_unpackhi_ps(z[0], z[1]);
    const F c = _mm512_unpacklo_ps(z[2], z[3]), d = _mm512_unpackhi_ps(z[2], z[3]);
    // p, q, r, s: lanes 0, 1, 2, 3 of each block of four lanes.
    const F p = pairs<0>(a, c), q = pairs<1>(a, c), r = pairs<0>(b, d), s = pairs<1>(b, d);
    const F pq0 = _mm512_shuffle_f32x4(p, q, 0x44), pq1 = _mm512_shuffle_f32x4(p, q, 0xEE);
    const F rs0 = _mm512_shuffle_f32x4(r, s, 0x44), rs1 = _mm512_shuffle_f32x4(r, s, 0xEE);
    _mm512_storeu_ps(out, _mm512_shuffle_f32x4(pq0, rs0, 0x88));
    _mm512_storeu_ps(out + 16, _mm512_shuffle_f32x4(pq0, rs0, 0xDD));
    _mm512_storeu_ps(out + 32, _mm512_shuffle_f32x4(pq1, rs1, 0x88));
    _mm512_storeu_ps(out + 48, _mm512_shuffle_f32x4(pq1, rs1, 0xDD));
  }

 private:
  static inline void half_round(U (&c)[4], U k0, U k1, U m0, U m1) {
    const U p0 = _mm512_mul_epu32(c[0], m0), p1 = _mm512_mul_epu32(c[2], m1);
    c[0] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c[1], k0, 0x96);
    c[2] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c[3], k1, 0x96);
    c[1] = p1;
    c[3] = p0;
  }
  template <int high>
  static inline F pairs(F a, F b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  }
};

}  // namespace CMS_ISA
}  // namespace cmsolvers
