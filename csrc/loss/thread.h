// What CUDA threads do in losses. Host code can call it too (tests/cuda/emulate_losses.cu).
#pragma once

#include "../step/thread.h"
#include "group.h"

namespace cmsolvers {
namespace cuda {

// --- forms of one noise ---

inline Plan make_forms_plan(const NoiseFormsParams& p) {
  Plan plan = make_plan(p.place);
  for (int j = 0; j < p.n; ++j) plan.vector = plan.vector && aligned(p.outs[j], p.types[j]);
  return plan;
}

// The units first, first + stride, ... of a plan.
template <class State, bool kPermuted>
CMS_HD void noise_forms_thread(const NoiseFormsParams& p, const Plan& plan, int64_t first,
                               int64_t stride) {
  using A = Wide<State>;
  for (int64_t index = first; index < plan.units; index += stride) {
    const Unit unit = kPermuted ? find_permuted_unit(plan, index) : find_unit<true>(plan, index);
    const bool vector = !kPermuted && plan.vector;
    A x[kGroup];
    read_group<State>(p.place.x, unit.position, unit.step, unit.valid, vector, x);
    float z[kGroup];
    normal4(key_of(p.place, unit.sample), draw_of(p.place, unit.sample),
            static_cast<uint32_t>(unit.element / kGroup), z);
    if (unit.element % kGroup != 0) z[0] = pick(z, static_cast<uint32_t>(unit.element % kGroup));
#pragma unroll 1
    for (int j = 0; j < p.n; ++j) {
      const A a = form_weight<A>(p, j, 0, unit.sample), b = form_weight<A>(p, j, 1, unit.sample);
      A out[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) out[i] = form(a, x[i], b, A(z[i]));
      write_group(p.types[j], p.outs[j], unit.position, unit.step, unit.valid, vector, out);
    }
  }
}

// --- sizes of residuals ---

// A span of threads shares one chunk of one sample: a warp where samples are small, else a block.
struct Cut {
  int64_t chunk;   // elements
  int64_t chunks;  // per sample
  int64_t items;   // chunks of all samples
  int span;        // threads
  bool vector;     // every tensor allows vector access at multiples of kGroup elements
};

inline Cut make_cut(const DistanceParams& p, int64_t chunk, int block) {
  Cut cut;
  cut.chunk = chunk;
  cut.chunks = chunks_of(p.count, chunk);
  cut.items = p.batch * cut.chunks;
  cut.span = p.count <= 512 ? 32 : block;
  cut.vector = p.count % kGroup == 0;
  for (int k = 0; k < p.n; ++k) {
    cut.vector = cut.vector && aligned(p.inputs[k], p.types[k]);
    cut.vector = cut.vector && (p.grads[k] == nullptr || aligned(p.grads[k], p.types[k]));
  }
  return cut;
}

template <class A>
CMS_HD void read_group(DType type, const void* data, int64_t position, int valid, bool vector,
                       A (&v)[kGroup]) {
  if (type == DType::f32)
    read_group<float>(data, position, 1, valid, vector, v);
  else if (type == DType::bf16)
    read_group<BFloat>(data, position, 1, valid, vector, v);
  else if (type == DType::f16)
    read_group<Half>(data, position, 1, valid, vector, v);
  else if constexpr (std::is_same_v<A, double>)  // else the arithmetic is not float32
    read_group<double>(data, position, 1, valid, vector, v);
}

// r of `valid` elements from a memory position on. T: the dtype of all inputs, void where they
// differ. All reads come first.
template <class A, class T>
CMS_HD void residual_group(const DistanceParams& p, const TermWeights<A>& row, int64_t position,
                           int valid, bool vector, A (&r)[kGroup]) {
  A m[kMaxTerms][kGroup];
#pragma unroll
  for (int k = 0; k < kMaxTerms; ++k) {
    if (row.w[k] == A(0)) continue;
    if constexpr (std::is_void_v<T>)
      read_group(p.types[k], p.inputs[k], position, valid, vector, m[k]);
    else
      read_group<T>(p.inputs[k], position, 1, valid, vector, m[k]);
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j) r[j] = A(0);
#pragma unroll
  for (int k = 0; k < kMaxTerms; ++k) {
    if (row.w[k] == A(0)) continue;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) r[j] = multiply_add(row.w[k], m[k][j], r[j]);
  }
}

// What one thread of an item's span adds up.
template <class A, class T>
CMS_HD double distance_thread(const DistanceParams& p, const Cut& cut, int64_t item, int thread) {
  const int64_t sample = item / cut.chunks, from = (item - sample * cut.chunks) * cut.chunk;
  const int64_t to = from + cut.chunk < p.count ? from + cut.chunk : p.count;
  const TermWeights<A> row = term_weights<A>(p, sample);
  const Size size = summed_as(p);
  const A c = static_cast<A>(p.c);
  double sum = 0.0;
  for (int64_t e = from + kGroup * thread; e < to; e += kGroup * cut.span) {
    const int valid = to - e < kGroup ? static_cast<int>(to - e) : kGroup;
    A r[kGroup];
    residual_group<A, T>(p, row, sample * p.count + e, valid, cut.vector, r);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (j < valid) sum = sum + element_size(size, r[j], c);
  }
  return sum;
}

// What the sum of an item becomes.
CMS_HD void store_sum(const DistanceParams& p, const Cut& cut, int64_t item, double sum) {
  if (cut.chunks == 1)
    p.values[item] = value_of(p, sum);
  else
    p.partials[item] = sum;
}

// The value of a sample of several chunks.
CMS_HD void finish_thread(const DistanceParams& p, const Cut& cut, int64_t sample) {
  double sum = 0.0;
  for (int64_t i = 0; i < cut.chunks; ++i) sum = sum + p.partials[sample * cut.chunks + i];
  p.values[sample] = value_of(p, sum);
}

template <class A, class T>
CMS_HD void distance_backward_thread(const DistanceParams& p, const Cut& cut, int64_t item,
                                     int thread) {
  const int64_t sample = item / cut.chunks, from = (item - sample * cut.chunks) * cut.chunk;
  const int64_t to = from + cut.chunk < p.count ? from + cut.chunk : p.count;
  const TermWeights<A> row = term_weights<A>(p, sample);
  const double factor = element_factor(p, sample);
  const bool gone = left_out(p, sample);
  const Size size = summed_as(p);
  const A c = static_cast<A>(p.c);
  for (int64_t e = from + kGroup * thread; e < to; e += kGroup * cut.span) {
    const int valid = to - e < kGroup ? static_cast<int>(to - e) : kGroup;
    const int64_t position = sample * p.count + e;
    A slope[kGroup];
    residual_group<A, T>(p, row, position, valid, cut.vector, slope);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) slope[j] = element_slope(size, slope[j], c);
#pragma unroll 1
    for (int k = 0; k < p.n; ++k) {
      if (p.grads[k] == nullptr) continue;
      const double w = p.weights[k * p.columns + (p.columns == 1 ? 0 : sample)];
      const A scale = static_cast<A>(multiply(w, factor));
      const bool absent = gone || static_cast<A>(w) == A(0);
      A out[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) out[j] = absent ? A(0) : multiply(scale, slope[j]);
      write_group(p.types[k], p.grads[k], position, 1, valid, cut.vector, out);
    }
  }
}

}  // namespace cuda
}  // namespace cmsolvers
