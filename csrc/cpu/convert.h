// Blocks of elements between their storage types and the arithmetic types float and double.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../contract/half.h"
#include "../step/params.h"

namespace cmsolvers {
namespace CMS_ISA {

struct Half {
  uint16_t word;
};
struct BFloat16 {
  uint16_t word;
};

CMS_HD uint32_t float_word(float v) {
  return ScalarLanes::bits(v);
}
CMS_HD float word_float(uint32_t v) {
  return ScalarLanes::from_bits(v);
}

CMS_HD float to_float(BFloat16 v) {
  return bfloat16_value(v.word);
}

CMS_HD BFloat16 to_bfloat16(float v) {  // to nearest, even; NaN stays NaN
  const uint32_t word = float_word(v);
  const uint32_t rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(v != v ? 0x7FC0u : rounded)};
}

CMS_HD float to_float(Half v) {
  return half_value(v.word);
}

CMS_HD Half to_half(float v) {
  const uint32_t word = float_word(v);
  const uint32_t sign = (word >> 16) & 0x8000u;
  const uint32_t magnitude = word & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at 2^-24, to even
    const uint32_t rounded = float_word(word_float(magnitude) + 0.5f) - 0x3F000000u;
    return {static_cast<uint16_t>(sign | rounded)};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

template <class A>
inline void widen(const float* from, A* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = static_cast<A>(from[i]);
}
template <class A>
inline void widen(const BFloat16* from, A* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = static_cast<A>(to_float(from[i]));
}
template <class A>
inline void widen(const Half* from, A* to, int n) {
  int i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    alignas(32) float block[8];
    _mm256_store_ps(block, v);
    for (int j = 0; j < 8; ++j) to[i + j] = static_cast<A>(block[j]);
  }
#endif
  for (; i < n; ++i) to[i] = static_cast<A>(to_float(from[i]));
}

inline void narrow(const double* from, double* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}
template <class A>
inline void narrow(const A* from, float* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}
template <class A>
inline void narrow(const A* from, BFloat16* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = to_bfloat16(static_cast<float>(from[i]));
}
template <class A>
inline void narrow(const A* from, Half* to, int n) {
  int i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    alignas(32) float block[8];
    for (int j = 0; j < 8; ++j) block[j] = static_cast<float>(from[i + j]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_load_ps(block), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) to[i] = to_half(static_cast<float>(from[i]));
}

// n elements of `type` at index `first` of `from`, as A: in place where they are A already, else
// through `buffer`.
template <class A>
inline const A* load_block(const void* from, DType type, int64_t first, int n, A* buffer) {
  const char* at = static_cast<const char*>(from) + first * size_of(type);
  switch (type) {
    case DType::f64:
      if constexpr (sizeof(A) == 8) return reinterpret_cast<const A*>(at);
      return nullptr;  // refused before: inputs are never wider than the state
    case DType::f32:
      if constexpr (sizeof(A) == 4) return reinterpret_cast<const A*>(at);
      widen(reinterpret_cast<const float*>(at), buffer, n);
      return buffer;
    case DType::f16:
      widen(reinterpret_cast<const Half*>(at), buffer, n);
      return buffer;
    case DType::bf16:
      widen(reinterpret_cast<const BFloat16*>(at), buffer, n);
      return buffer;
  }
  return nullptr;
}

template <class A>
inline void store_block(const A* from, void* to, DType type, int64_t first, int n) {
  char* at = static_cast<char*>(to) + first * size_of(type);
  switch (type) {
    case DType::f64:
      for (int i = 0; i < n; ++i) reinterpret_cast<double*>(at)[i] = static_cast<double>(from[i]);
      return;
    case DType::f32:
      return narrow(from, reinterpret_cast<float*>(at), n);
    case DType::f16:
      return narrow(from, reinterpret_cast<Half*>(at), n);
    case DType::bf16:
      return narrow(from, reinterpret_cast<BFloat16*>(at), n);
  }
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
