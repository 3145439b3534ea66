// One element of a residual, and the weights of one sample, in scalars, for host and device. Every
// kernel does these operations in this order.
#pragma once

#include "../step/group.h"
#include "params.h"

namespace cmsolvers {
namespace CMS_ISA {

// Weights of one sample; a term whose weight is zero is not there.
template <class A>
struct TermWeights {
  A w[kMaxTerms];
};

template <class A>
CMS_HD TermWeights<A> term_weights(const DistanceParams& p, int64_t sample) {
  TermWeights<A> row;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int k = 0; k < kMaxTerms; ++k)
    row.w[k] =
        k < p.n ? static_cast<A>(p.weights[k * p.columns + (p.columns == 1 ? 0 : sample)]) : A(0);
  return row;
}

template <class A>
CMS_HD A form_weight(const NoiseFormsParams& p, int j, int i, int64_t sample) {
  return static_cast<A>(p.weights[(2 * j + i) * p.columns + (p.columns == 1 ? 0 : sample)]);
}

// a x + b z.
template <class A>
CMS_HD A form(A a, A x, A b, A z) {
  const A first = a == A(0) ? A(0) : multiply(a, x);
  return b == A(0) ? first : multiply_add(b, z, first);
}

CMS_HD float root(float v) {
  return ScalarLanes::sqrt(v);
}
CMS_HD double root(double v) {
  return square_root(v);
}
CMS_HD float absolute(float v) {
  return ScalarLanes::from_bits(ScalarLanes::bits(v) & 0x7FFFFFFFu);
}
CMS_HD double absolute(double v) {
  return magnitude(v);
}

// Beyond this a square may not be finite in float32; there c has no weight.
template <class A>
constexpr A kFar = A(1152921504606846976.0);  // 2^60

// sqrt(r^2 + c^2) - c without cancellation near 0.
template <class A>
CMS_HD A huber(A r, A c) {
  const A q = absolute(r);
  const A s = root(multiply(q, q) + multiply(c, c));
  const A near = multiply(q, q / (s + c));
  return q > kFar<A> ? q - c : near;
}

// Its derivative.
template <class A>
CMS_HD A huber_slope(A r, A c) {
  const A q = absolute(r);
  const A s = root(multiply(q, q) + multiply(c, c));
  const A sign = r > A(0) ? A(1) : A(-1);
  return q > kFar<A> ? sign : r / s;
}

// The sign; 0 at 0, NaN at NaN.
template <class A>
CMS_HD A sign_of(A r) {
  return r > A(0) ? A(1) : (r < A(0) ? A(-1) : r);
}

// How elements are summed: a Huber function without c is |r|, and the root comes after the sum.
CMS_HD Size summed_as(const DistanceParams& p) {
  if (p.size == Size::pseudo_huber) return Size::square;
  return p.size == Size::huber && p.c == 0.0 ? Size::abs : p.size;
}

// What one element adds to the sum. The square of a float32 is exact in float64.
template <class A>
CMS_HD double element_size(Size size, A r, A c) {
  if (size == Size::square) return multiply(static_cast<double>(r), static_cast<double>(r));
  return static_cast<double>(size == Size::abs ? absolute(r) : huber(r, c));
}

// The derivative by r of what one element adds, but for the factor of element_factor.
template <class A>
CMS_HD A element_slope(Size size, A r, A c) {
  if (size == Size::square) return r;
  return size == Size::abs ? sign_of(r) : huber_slope(r, c);
}

// From the sum of a sample to its value.
CMS_HD double value_of(const DistanceParams& p, double sum) {
  if (p.size != Size::pseudo_huber) return sum;
  const double s = square_root(sum + multiply(p.c, p.c));
  return p.c == 0.0 ? s : sum / (s + p.c);
}

// Whether nothing is to come back to a sample: then its gradients are 0 whatever r is, not 0 * NaN.
CMS_HD bool left_out(const DistanceParams& p, int64_t sample) {
  return p.grad[sample * p.grad_stride] == 0.0;
}

// What the slopes of a sample are multiplied with, apart from the weights.
CMS_HD double element_factor(const DistanceParams& p, int64_t sample) {
  const double g = p.grad[sample * p.grad_stride];
  if (p.size == Size::square) return multiply(2.0, g);
  if (p.size != Size::pseudo_huber) return g;
  const double s = p.given_values[sample] + p.c;  // the root
  return s == 0.0 ? 0.0 : g / s;
}

// The weights of a pair, see cmsolvers/ops/pair_rows.py.
CMS_HD void pair_rows(const RowsParams& p, int64_t sample) {
  for (int second = 0; second < 2; ++second) {
    const double level = second ? p.sigma_next[sample * p.next_stride] : p.sigma[sample * p.stride];
    double input[kWeights] = {level, p.sigma_data};
    double output[kWeights] = {level, p.sigma_data, p.sigma_min, p.held[0], p.held[1], p.held[2]};
    apply_rule(Rule::edm_input, input);
    apply_rule(Rule::consistency, output);
    const double c_in = input[kX];
    const bool data = second && level == 0.0;  // x' is x0, the target itself
    const double skip = data ? 1.0 : output[kX], out = data ? 0.0 : output[kInput];
    double* noise = p.noise + sample;
    noise[(2 * second) * p.batch] = 1.0;
    noise[(2 * second + 1) * p.batch] = level;
    noise[(2 * second + 4) * p.batch] = c_in;
    noise[(2 * second + 5) * p.batch] = multiply(c_in, level);
    p.residual[2 * second * p.batch + sample] = second ? -skip : skip;
    p.residual[(2 * second + 1) * p.batch + sample] = second ? -out : out;
  }
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
