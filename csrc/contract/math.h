// Box-Muller from IEEE add, multiply, fused multiply-add and square root alone: the same bits on
// every processor.
//
// Everything is a template over `L`, a set of lanes: L::F holds float32 values and L::U 32-bit
// words, with the operations of ScalarLanes below. The CPU kernels bring vectors, CUDA threads use
// ScalarLanes. Nothing here may be contracted or reordered: compile with -ffp-contract=off and
// --fmad=false, never with fast-math.
//
// tools/fit_polynomials.py derives the coefficients; cmsolvers/ops/reference.py repeats the
// algorithm in torch.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CMS_HD __host__ __device__ __forceinline__
#else
#define CMS_HD inline __attribute__((always_inline))
#endif

// Sources that are compiled for one instruction set name their own namespace, so that the
// linker never puts code of one set where another is expected.
#ifndef CMS_ISA
#define CMS_ISA portable
#endif

namespace cmsolvers {
namespace CMS_ISA {

struct ScalarLanes {
  using F = float;
  using U = uint32_t;
  static constexpr int width = 1;

  static CMS_HD F set(float v) { return v; }
  static CMS_HD U set_word(uint32_t v) { return v; }
#if defined(__CUDA_ARCH__)
  static CMS_HD F add(F a, F b) { return __fadd_rn(a, b); }
  static CMS_HD F mul(F a, F b) { return __fmul_rn(a, b); }
  static CMS_HD F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
  static CMS_HD F sqrt(F a) { return __fsqrt_rn(a); }
  static CMS_HD F from_signed(U a) { return __int2float_rn(static_cast<int32_t>(a)); }
  static CMS_HD F from_unsigned(U a) { return __uint2float_rn(a); }
  static CMS_HD U bits(F a) { return __float_as_uint(a); }
  static CMS_HD F from_bits(U a) { return __uint_as_float(a); }
#else
  static CMS_HD F add(F a, F b) { return a + b; }
  static CMS_HD F mul(F a, F b) { return a * b; }
  static CMS_HD F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
  static CMS_HD F sqrt(F a) { return __builtin_sqrtf(a); }
  static CMS_HD F from_signed(U a) { return static_cast<float>(static_cast<int32_t>(a)); }
  static CMS_HD F from_unsigned(U a) { return static_cast<float>(a); }
  static CMS_HD U bits(F a) {
    U word;
    __builtin_memcpy(&word, &a, sizeof word);
    return word;
  }
  static CMS_HD F from_bits(U a) {
    F value;
    __builtin_memcpy(&value, &a, sizeof value);
    return value;
  }
#endif
  static CMS_HD U add_word(U a, U b) { return a + b; }
  static CMS_HD U sub_word(U a, U b) { return a - b; }
  static CMS_HD U and_word(U a, U b) { return a & b; }
  static CMS_HD U xor_word(U a, U b) { return a ^ b; }
  template <int n>
  static CMS_HD U shift_left(U a) {
    return a << n;
  }
  template <int n>
  static CMS_HD U shift_right_signed(U a) {
    return static_cast<U>(static_cast<int32_t>(a) >> n);
  }
  // Where bit 0 of k is set: a, else b.
  static CMS_HD F select_odd(U k, F a, F b) { return (k & 1u) ? a : b; }
};

// ln u for u in [2^-33, 1], within 1 ULP.
template <class L>
CMS_HD typename L::F ln(typename L::F u) {
  using F = typename L::F;
  using U = typename L::U;
  const U shifted = L::sub_word(L::bits(u), L::set_word(0x3F3504F3u));  // the bits of sqrt(1/2)
  const F exponent = L::from_signed(L::template shift_right_signed<23>(shifted));
  const U mantissa =
      L::add_word(L::and_word(shifted, L::set_word(0x7FFFFFu)), L::set_word(0x3F3504F3u));
  const F f = L::add(L::from_bits(mantissa), L::set(-1.0f));  // exact: u = 2^exponent (1 + f)
  const F square = L::mul(f, f);
  F rest = L::set(-0.0763449371f);
  rest = L::fma(rest, f, L::set(0.12761575f));
  rest = L::fma(rest, f, L::set(-0.131601825f));
  rest = L::fma(rest, f, L::set(0.142017588f));
  rest = L::fma(rest, f, L::set(-0.166233569f));
  rest = L::fma(rest, f, L::set(0.200012267f));
  rest = L::fma(rest, f, L::set(-0.250008196f));
  rest = L::fma(rest, f, L::set(0.333333313f));
  rest = L::fma(L::mul(square, f), rest, L::mul(exponent, L::set(-1.90465421e-09f)));
  rest = L::fma(square, L::set(-0.5f), rest);
  return L::fma(exponent, L::set(0.693147182f), L::add(f, rest));
}

// sin and cos of 2 pi t for t in [-0.5, 0.5]; the reduction to [-1/8, 1/8] is exact.
template <class L>
CMS_HD void sincos_turns(typename L::F t, typename L::F& sin_out, typename L::F& cos_out) {
  using F = typename L::F;
  using U = typename L::U;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, to even
  const F rounded = L::fma(t, L::set(4.0f), L::set(magic));
  const U k = L::bits(rounded);  // the low bits hold the quadrant
  const F quadrant = L::add(rounded, L::set(-magic));
  const F f = L::fma(quadrant, L::set(-0.25f), t);
  const F y = L::mul(f, f);
  F s = L::set(-75.4533997f);
  s = L::fma(s, y, L::set(81.5939407f));
  s = L::fma(s, y, L::set(-41.3416748f));
  s = L::mul(f, L::fma(y, s, L::set(-1.74845553e-07f)));
  s = L::fma(f, L::set(6.28318548f), s);
  F c = L::set(59.2459641f);
  c = L::fma(c, y, L::set(-85.4437408f));
  c = L::fma(c, y, L::set(64.9393234f));
  c = L::fma(c, y, L::set(-19.7392082f));
  c = L::fma(y, c, L::set(1.0f));
  const U two = L::set_word(2u);
  const U sin_sign = L::template shift_left<30>(L::and_word(k, two));
  const U cos_sign = L::template shift_left<30>(L::and_word(L::add_word(k, L::set_word(1u)), two));
  sin_out = L::from_bits(L::xor_word(L::bits(L::select_odd(k, c, s)), sin_sign));
  cos_out = L::from_bits(L::xor_word(L::bits(L::select_odd(k, s, c)), cos_sign));
}

// Two unit normals from two random words (Box and Muller 1958).
template <class L>
CMS_HD void box_muller(typename L::U r0, typename L::U r1, typename L::F& z0, typename L::F& z1) {
  using F = typename L::F;
  const F u = L::fma(L::from_unsigned(r0), L::set(0x1p-32f), L::set(0x1p-33f));
  const F radius = L::sqrt(L::mul(ln<L>(u), L::set(-2.0f)));
  F sine, cosine;
  sincos_turns<L>(L::mul(L::from_signed(r1), L::set(0x1p-32f)), sine, cosine);
  z0 = L::mul(radius, cosine);
  z1 = L::mul(radius, sine);
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
