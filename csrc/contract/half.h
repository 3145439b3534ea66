// The values of 16-bit floating words, in scalars, for host and device.
#pragma once

#include "math.h"

namespace cmsolvers {
namespace CMS_ISA {

CMS_HD float bfloat16_value(uint16_t word) {
  return ScalarLanes::from_bits(static_cast<uint32_t>(word) << 16);
}

CMS_HD float half_value(uint16_t word) {
  const uint32_t sign = static_cast<uint32_t>(word & 0x8000u) << 16;
  const uint32_t magnitude = word & 0x7FFFu;
  if (magnitude >= 0x7C00u)
    return ScalarLanes::from_bits(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  if (magnitude >= 0x400u) return ScalarLanes::from_bits(sign | ((magnitude << 13) + 0x38000000u));
  const float small = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -small : small;
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
