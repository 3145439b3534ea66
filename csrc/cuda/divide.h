// Division by a number that is known at launch: one multiplication and a shift instead of some
// hundred instructions (Granlund and Montgomery 1994), for dividends below 2^31.
#pragma once

#include <cstdint>

#include "../contract/math.h"

namespace cmsolvers {
namespace cuda {

struct Divisor {
  int64_t value = 1;
  uint32_t magic = 0;  // 0: the dividends may be large, divide in 64 bits
  uint32_t shift = 0;
};

// A divisor for dividends in [0, bound).
constexpr Divisor make_divisor(int64_t value, int64_t bound) {
  constexpr int64_t kLimit = int64_t(1) << 31;
  if (value >= kLimit || bound > kLimit) return {value, 0, 0};
  uint32_t shift = 0;
  while ((int64_t(1) << shift) < value) ++shift;
  const uint64_t magic =
      ((uint64_t(1) << 32) * ((uint64_t(1) << shift) - uint64_t(value))) / uint64_t(value) + 1;
  return {value, static_cast<uint32_t>(magic), shift};
}

constexpr CMS_HD int64_t quotient(int64_t n, const Divisor& d) {
  if (d.magic == 0) return n / d.value;
  const uint32_t low = static_cast<uint32_t>(n);
  const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(low) * d.magic) >> 32);
  return (high + low) >> d.shift;
}

constexpr bool divides(int64_t n, int64_t value) {
  return quotient(n, make_divisor(value, int64_t(1) << 31)) == n / value;
}
static_assert(divides(2147483647, 1) && divides(2147483647, 2) && divides(2147483646, 3));
static_assert(divides(2147483647, 7) && divides(2147483647, 641) && divides(2147483647, 1 << 30));
static_assert(divides(2147483647, 2147483647) && divides(2147483646, 2147483647));
static_assert(divides(49151, 49152) && divides(49152, 49152) && divides(0, 3) && divides(2, 3));

}  // namespace cuda
}  // namespace cmsolvers
