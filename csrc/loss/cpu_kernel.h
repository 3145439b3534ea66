// Losses on the CPU: blocks of a few hundred elements, as the step has them. Compiled for one
// instruction set.
#pragma once

#include "../step/cpu_kernel.h"
#include "group.h"

namespace cmsolvers {
namespace CMS_ISA {

// --- forms of one noise ---

template <class A>
struct FormsScratch {
  alignas(64) A x[kBlock], z_wide[kBlock], out[kMaxForms][kBlock];
  alignas(64) float z[kBlock + 2 * kGroupLanes];
  Leaving leaving[kMaxForms];
};

template <class A>
inline void form_run(A* out, const A* x, const A* z, A a, A b, int n) {
  Terms<A> terms;
  terms.add(a, x, true);
  terms.add(b, z);
  terms.sum(out, n);
}

template <class A>
inline void forms_block(const NoiseFormsParams& p, int64_t first, int n, FormsScratch<A>& s) {
  const A* x = load_block(p.place.x, p.place.state, first, n, s.x);
  const float* drawn =
      fill_noise(p.place, first, n, s.z, [&](int from, int some) __attribute__((always_inline)) {
        prefetch(x, from, some);  // it arrives beside the noise
      });
  const A* z;
  if constexpr (sizeof(A) == 4) {
    z = drawn;
  } else {
    widen(drawn, s.z_wide, n);
    z = s.z_wide;
  }
  constexpr DType wide = sizeof(A) == 8 ? DType::f64 : DType::f32;
  for (int j = 0; j < p.n; ++j) {
    A* const out = p.types[j] == wide ? static_cast<A*>(p.outs[j]) + first : s.out[j];
    if (p.columns == 1) {
      form_run(out, x, z, form_weight<A>(p, j, 0, 0), form_weight<A>(p, j, 1, 0), n);
    } else {
      int64_t sample = first / p.place.count;
      for (int i = 0; i < n; ++sample) {
        const int most =
            static_cast<int>(std::min<int64_t>((sample + 1) * p.place.count - first, int64_t{n}));
        const A a = form_weight<A>(p, j, 0, sample), b = form_weight<A>(p, j, 1, sample);
        if (most - i < 8) {
          for (; i < most; ++i) out[i] = form(a, x[i], b, z[i]);
        } else {
          form_run(out + i, x + i, z + i, a, b, most - i);
          i = most;
        }
      }
    }
    if (p.types[j] != wide) store_block(out, p.outs[j], p.types[j], first, n);
  }
}

template <class A>
inline void run_forms_range(const NoiseFormsParams& p, int64_t begin, int64_t end) {
  FormsScratch<A> scratch;
  for (int64_t at = begin; at < end;) {
    int64_t most = std::min<int64_t>(kBlock, end - at);
    if (p.place.count >= kBlock)  // blocks in one sample have the fast way to the normals
      most = std::min(most, (at / p.place.count + 1) * p.place.count - at);
    forms_block(p, at, static_cast<int>(most), scratch);
    at += most;
  }
}

inline void run_noise_forms(const NoiseFormsParams& p, int64_t begin, int64_t end) {
  if (p.place.state == DType::f64)
    run_forms_range<double>(p, begin, end);
  else
    run_forms_range<float>(p, begin, end);
}

// --- sizes of residuals ---

constexpr int kSums = 16;

// Sixteen sums side by side, element e into sum e % 16, in vectors of the instruction set's own.
struct Sums {
  using Wide = double __attribute__((vector_size(64)));
  using Narrow = float __attribute__((vector_size(32)));

  Wide low = {}, high = {};

  static inline void load(const double* from, Wide& to) { __builtin_memcpy(&to, from, sizeof to); }
  static inline void load(const float* from, Wide& to) {
    Narrow v;
    __builtin_memcpy(&v, from, sizeof v);
    to = __builtin_convertvector(v, Wide);
  }

  // n elements that begin at a multiple of kSums; only the last call may bring another number.
  template <class A, bool square>
  inline void add(const A* values, int n) {
    int i = 0;
    Wide a = low, b = high;
    for (; i + kSums <= n; i += kSums) {
      Wide p, q;
      load(values + i, p);
      load(values + i + 8, q);
      a += square ? p * p : p;
      b += square ? q * q : q;
    }
    low = a;
    high = b;
    for (int j = 0; i + j < n; ++j) {
      const double v = static_cast<double>(values[i + j]);
      (j < 8 ? low[j] : high[j - 8]) += square ? v * v : v;
    }
  }

  inline double total() const {
    const Wide a = low + high;
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
  }
};

template <class A>
struct DistanceScratch {
  alignas(64) A m[kMaxTerms][kBlock], r[kBlock], out[kBlock];
};

// r of memory positions first .. first + n - 1, which are of one sample.
template <class A>
inline void residual_block(const DistanceParams& p, const TermWeights<A>& row, int64_t first, int n,
                           DistanceScratch<A>& s) {
  Terms<A> terms;
  for (int k = 0; k < p.n; ++k)
    if (row.w[k] != A(0))
      terms.add(row.w[k], load_block(p.inputs[k], p.types[k], first, n, s.m[k]));
  terms.sum(s.r, n);
}

template <class A>
inline void add_block(Size size, A c, A* r, int n, Sums& sums) {
  if (size == Size::square) return sums.add<A, true>(r, n);
  if (size == Size::abs)
    for (int i = 0; i < n; ++i) r[i] = absolute(r[i]);
  else
    for (int i = 0; i < n; ++i) r[i] = huber(r[i], c);
  sums.add<A, false>(r, n);
}

// Chunks begin .. end - 1 of all, which are numbered sample after sample.
template <class A>
inline void distance_range(const DistanceParams& p, int64_t begin, int64_t end) {
  DistanceScratch<A> scratch;
  const int64_t chunks = chunks_of(p.count, kCpuChunk);
  const Size size = summed_as(p);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sample = at / chunks, from = (at - sample * chunks) * kCpuChunk;
    const int64_t to = std::min(from + kCpuChunk, p.count);
    const TermWeights<A> row = term_weights<A>(p, sample);
    Sums sums;
    for (int64_t e = from; e < to; e += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, to - e));
      residual_block(p, row, sample * p.count + e, n, scratch);
      add_block(size, static_cast<A>(p.c), scratch.r, n, sums);
    }
    if (chunks == 1)
      p.values[sample] = value_of(p, sums.total());
    else
      p.partials[at] = sums.total();
  }
}

inline void run_distance(const DistanceParams& p, int64_t begin, int64_t end) {
  if (p.wide)
    distance_range<double>(p, begin, end);
  else
    distance_range<float>(p, begin, end);
}

template <class A>
inline void slope_block(Size size, A c, A* r, int n) {
  if (size == Size::abs)
    for (int i = 0; i < n; ++i) r[i] = sign_of(r[i]);
  else if (size == Size::huber)
    for (int i = 0; i < n; ++i) r[i] = huber_slope(r[i], c);
}

template <class A>
inline void backward_range(const DistanceParams& p, int64_t begin, int64_t end) {
  DistanceScratch<A> scratch;
  constexpr DType wide = sizeof(A) == 8 ? DType::f64 : DType::f32;
  const int64_t chunks = chunks_of(p.count, kCpuChunk);
  const Size size = summed_as(p);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sample = at / chunks, from = (at - sample * chunks) * kCpuChunk;
    const int64_t to = std::min(from + kCpuChunk, p.count);
    const TermWeights<A> row = term_weights<A>(p, sample);
    const double factor = element_factor(p, sample);
    const bool gone = left_out(p, sample);
    for (int64_t e = from; e < to; e += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, to - e));
      const int64_t first = sample * p.count + e;
      residual_block(p, row, first, n, scratch);
      slope_block(size, static_cast<A>(p.c), scratch.r, n);
      for (int k = 0; k < p.n; ++k) {
        if (p.grads[k] == nullptr) continue;
        const bool in_place = p.types[k] == wide;
        A* const out = in_place ? static_cast<A*>(p.grads[k]) + first : scratch.out;
        const A w =
            static_cast<A>(p.weights[k * p.columns + (p.columns == 1 ? 0 : sample)] * factor);
        if (gone || row.w[k] == A(0))
          std::fill(out, out + n, A(0));
        else
          for (int i = 0; i < n; ++i) out[i] = w * scratch.r[i];
        if (!in_place) store_block(out, p.grads[k], p.types[k], first, n);
      }
    }
  }
}

inline void run_distance_backward(const DistanceParams& p, int64_t begin, int64_t end) {
  if (p.wide)
    backward_range<double>(p, begin, end);
  else
    backward_range<float>(p, begin, end);
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
