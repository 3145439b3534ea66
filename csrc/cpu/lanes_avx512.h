// Sixteen lanes: AVX-512 F, DQ, BW, VL.
#pragma once

#include <immintrin.h>

#include "philox_wide.h"

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
  static inline void store_words(U a, uint32_t* p) { _mm512_storeu_si512(p, a); }
  static inline U counting(uint32_t first) {
    return add_word(set_word(first),
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }

  // For philox_wide.h.
  static inline U set_wide(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
  static inline U multiply(U a, U b) { return _mm512_mul_epu32(a, b); }
  static inline U high(U a) { return _mm512_srli_epi64(a, 32); }
  static inline U xor3(U a, U b, U c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static inline U join(U even, U odd) {
    return _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, static_cast<_MM_PERM_ENUM>(0xA0));
  }
  static inline void philox_sample(uint32_t first, const SampleRounds& sample, U (&c)[4]) {
    wide_philox_sample<Lanes>(first, sample, c);
  }
  static inline void philox_lanes(U (&c)[4], U k0, U k1) { wide_philox<Lanes>(c, k0, k1); }

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
  template <int upper>
  static inline F pairs(F a, F b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(upper ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  }
};

}  // namespace CMS_ISA
}  // namespace cmsolvers
