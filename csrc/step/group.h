// One element of the weighted step, in scalars, for host and device: what a CUDA thread runs, and
// what the portable CPU kernel is checked against. The order of operations is the same in every
// kernel, so the results are equal to the bit.
#pragma once

#include "../contract/philox.h"
#include "params.h"
#include "weights.h"

namespace cmsolvers {
namespace CMS_ISA {

CMS_HD float multiply(float a, float b) {
  return ScalarLanes::mul(a, b);
}
CMS_HD float multiply_add(float a, float b, float c) {
  return ScalarLanes::fma(a, b, c);
}
#if defined(__CUDA_ARCH__)
CMS_HD double multiply(double a, double b) {
  return __dmul_rn(a, b);
}
CMS_HD double multiply_add(double a, double b, double c) {
  return __fma_rn(a, b, c);
}
#else
CMS_HD double multiply(double a, double b) {
  return a * b;
}
CMS_HD double multiply_add(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}
#endif

// The weights of one sample in the arithmetic type A (float, or double for float64 states).
template <class A>
struct Row {
  A w[kWeights];

  // A term whose weight is zero is not there: 0 * inf must not make NaN.
  CMS_HD bool has(int j) const { return w[j] != A(0); }
};

template <class A>
CMS_HD Row<A> load_row(const StepParams& p, int64_t sample) {
  double weights[kWeights];
  weights_of(p, sample, weights);
  Row<A> row;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int j = 0; j < kWeights; ++j) row.w[j] = static_cast<A>(weights[j]);
  return row;
}

// Which values a row needs; the others are not read.
template <class A>
CMS_HD bool reads_x(const StepParams& p, const Row<A>& row) {
  return row.has(kX) || (p.use_x0 && row.has(kSkip)) || (p.second == Second::pair && row.has(kS0));
}

template <class A>
CMS_HD bool reads_input(const StepParams& p, const Row<A>& row, int k) {
  if (k == 0 && p.use_x0) return row.has(kOut);  // D is made even where its own weight is zero
  return row.has(kInput + k);
}

template <class A>
struct Outputs {
  A first;
  A second;
};

// The arithmetic for one element; values that the row does not read may be anything.
template <class A>
CMS_HD Outputs<A> combine(const StepParams& p, const Row<A>& row, A x, const A (&m)[kMaxInputs],
                          A z) {
  Outputs<A> result{A(0), A(0)};
  A basis = m[0];
  if (p.use_x0) {
    basis = row.has(kSkip) ? multiply(row.w[kSkip], x) : A(0);
    if (row.has(kOut)) basis = multiply_add(row.w[kOut], m[0], basis);
    if (p.clamp) {  // NaN passes through
      const A low = static_cast<A>(p.low), high = static_cast<A>(p.high);
      basis = basis < low ? low : basis;
      basis = basis > high ? high : basis;
    }
  }
  A sum = row.has(kX) ? multiply(row.w[kX], x) : A(0);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int k = 0; k < kMaxInputs; ++k)
    if (row.has(kInput + k)) sum = multiply_add(row.w[kInput + k], k == 0 ? basis : m[k], sum);
  if (p.noise && row.has(kZ)) sum = multiply_add(row.w[kZ], z, sum);
  result.first = sum;
  if (p.second == Second::scaled) {
    result.second = multiply(row.w[kS0], sum);
  } else if (p.second == Second::x0) {
    result.second = basis;
  } else if (p.second == Second::pair) {
    A other = row.has(kS0) ? multiply(row.w[kS0], x) : A(0);
    if (p.noise && row.has(kS1)) other = multiply_add(row.w[kS1], z, other);
    result.second = other;
  }
  return result;
}

CMS_HD SampleKey key_of(const StepParams& p, int64_t sample) {
  uint64_t seed = p.seed;
  uint64_t id = p.offset + static_cast<uint64_t>(sample);
  if (p.key != nullptr) {
    const int64_t* row = p.key + (p.key_per_sample ? p.key_width * sample : 0);
    seed = static_cast<uint64_t>(row[0]);
    id = static_cast<uint64_t>(row[1]) + (p.key_per_sample ? 0u : static_cast<uint64_t>(sample));
  }
  return sample_key(seed, id, p.stream);
}

CMS_HD uint32_t draw_of(const StepParams& p, int64_t sample) {
  if (p.key == nullptr || p.key_width == 2) return p.draw;
  return static_cast<uint32_t>(p.key[(p.key_per_sample ? 3 * sample : 0) + 2]);
}

// Sample and logical element of a memory position.
CMS_HD void locate(const StepParams& p, int64_t position, int64_t& sample, int64_t& element) {
  if (!p.permuted) {
    sample = position / p.count;
    element = position - sample * p.count;
    return;
  }
  sample = 0;
  element = 0;
  for (int d = p.n_dims - 1; d >= 0; --d) {
    const int64_t above = position / p.dims[d];
    const int64_t digit = position - above * p.dims[d];
    if (d == p.batch_dim)
      sample = digit;
    else
      element += digit * p.strides[d];
    position = above;
  }
}

CMS_HD float pick(const float (&z)[4], uint32_t lane) {
  return lane < 2 ? (lane == 0 ? z[0] : z[1]) : (lane == 2 ? z[2] : z[3]);
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
