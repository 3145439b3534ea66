// Stores that go past the caches: for outputs too large to be found there again, they save reading
// the line first.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cmsolvers {
namespace CMS_ISA {

inline void stream_store(const float* from, float* to, int n) {
  int i = 0;
#if defined(__AVX512F__)
  while (i < n && (reinterpret_cast<uintptr_t>(to + i) & 63) != 0) to[i] = from[i], ++i;
  for (; i + 16 <= n; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
#elif defined(__AVX2__)
  while (i < n && (reinterpret_cast<uintptr_t>(to + i) & 31) != 0) to[i] = from[i], ++i;
  for (; i + 8 <= n; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
#endif
  for (; i < n; ++i) to[i] = from[i];
}

// Such stores are not ordered with later ones: to be called before another thread may read them.
inline void stream_fence() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
