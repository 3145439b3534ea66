// Two vectors as one: every operation is done on both. Written so, two independent chains of
// arithmetic stand side by side in the program, and the processor hides the latency of one behind
// the other (a fifth of the time of the normals).
#pragma once

#include "../contract/math.h"

namespace cmsolvers {
namespace CMS_ISA {

template <class L>
struct Twice {
  struct F {
    typename L::F a, b;
  };
  struct U {
    typename L::U a, b;
  };

  static inline F set(float v) { return {L::set(v), L::set(v)}; }
  static inline U set_word(uint32_t v) { return {L::set_word(v), L::set_word(v)}; }
  static inline F add(F x, F y) { return {L::add(x.a, y.a), L::add(x.b, y.b)}; }
  static inline F mul(F x, F y) { return {L::mul(x.a, y.a), L::mul(x.b, y.b)}; }
  static inline F fma(F x, F y, F z) { return {L::fma(x.a, y.a, z.a), L::fma(x.b, y.b, z.b)}; }
  static inline F sqrt(F x) { return {L::sqrt(x.a), L::sqrt(x.b)}; }
  static inline F from_signed(U x) { return {L::from_signed(x.a), L::from_signed(x.b)}; }
  static inline F from_unsigned(U x) { return {L::from_unsigned(x.a), L::from_unsigned(x.b)}; }
  static inline U bits(F x) { return {L::bits(x.a), L::bits(x.b)}; }
  static inline F from_bits(U x) { return {L::from_bits(x.a), L::from_bits(x.b)}; }
  static inline U add_word(U x, U y) { return {L::add_word(x.a, y.a), L::add_word(x.b, y.b)}; }
  static inline U sub_word(U x, U y) { return {L::sub_word(x.a, y.a), L::sub_word(x.b, y.b)}; }
  static inline U and_word(U x, U y) { return {L::and_word(x.a, y.a), L::and_word(x.b, y.b)}; }
  static inline U xor_word(U x, U y) { return {L::xor_word(x.a, y.a), L::xor_word(x.b, y.b)}; }
  template <int n>
  static inline U shift_left(U x) {
    return {L::template shift_left<n>(x.a), L::template shift_left<n>(x.b)};
  }
  template <int n>
  static inline U shift_right_signed(U x) {
    return {L::template shift_right_signed<n>(x.a), L::template shift_right_signed<n>(x.b)};
  }
  static inline F select_odd(U k, F x, F y) {
    return {L::select_odd(k.a, x.a, y.a), L::select_odd(k.b, x.b, y.b)};
  }

  // For philox_wide.h.
  static inline U set_wide(uint64_t v) { return {L::set_wide(v), L::set_wide(v)}; }
  static inline U multiply(U x, U y) { return {L::multiply(x.a, y.a), L::multiply(x.b, y.b)}; }
  static inline U high(U x) { return {L::high(x.a), L::high(x.b)}; }
  static inline U xor3(U x, U y, U z) { return {L::xor3(x.a, y.a, z.a), L::xor3(x.b, y.b, z.b)}; }
};

}  // namespace CMS_ISA
}  // namespace cmsolvers
