// How the work of one step is cut up for threads. A unit is a group of four elements that share one
// Philox call, so it never crosses a sample; made on the host, read by every thread.
#pragma once

#include "../step/params.h"
#include "divide.h"

namespace cmsolvers {
namespace cuda {

constexpr int kGroup = 4;

struct Plan {
  int64_t units = 0;
  // Sample and element matter (noise, or weights by sample). Else all memory counts as one sample.
  bool located = false;
  bool vector = false;  // every tensor allows vector access at multiples of kGroup elements
  int64_t count = 1;    // elements per sample
  Divisor per_sample;   // units a sample

  // Logical order is not memory order (say, channels_last): the digits of a unit, slowest first in
  // memory, give position and element. `span` elements of a unit lie `step` apart in memory.
  bool permuted = false;
  int n_dims = 0;
  int batch_dim = -1;
  int span = 1;
  int64_t step = 1;
  Divisor digits[kMaxDims];
  int64_t in_memory[kMaxDims] = {};
  int64_t in_sample[kMaxDims] = {};
};

// Whether kGroup elements at `pointer` can be moved in accesses of 16 bytes, or one if they are
// less.
inline bool aligned(const void* pointer, DType type) {
  const int64_t bytes = kGroup * size_of(type) < 16 ? kGroup * size_of(type) : 16;
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

inline bool all_aligned(const StepParams& p) {
  bool result = aligned(p.x, p.state) && aligned(p.out, p.state);
  for (int k = 0; k < p.n_inputs; ++k) result = result && aligned(p.inputs[k], p.model);
  return result && (p.second == Second::none || aligned(p.second_out, p.second_type));
}

// The memory dimension whose neighbours are neighbouring elements, if units of kGroup fit along it.
inline int find_span_dim(const StepParams& p) {
  int found = -1;
  for (int d = 0; d < p.n_dims; ++d) {
    if (d == p.batch_dim || p.dims[d] == 1) continue;
    if (p.strides[d] == 1)
      found = p.dims[d] % kGroup == 0 ? d : -1;
    else if (p.strides[d] % kGroup != 0)
      return -1;
  }
  return found;
}

inline void plan_permuted(const StepParams& p, Plan& plan) {
  const int span_dim = find_span_dim(p);
  plan.permuted = true;
  plan.n_dims = p.n_dims;
  plan.batch_dim = p.batch_dim;
  plan.span = span_dim >= 0 ? kGroup : 1;
  plan.units = p.total / plan.span;
  int64_t in_memory = 1;
  for (int d = p.n_dims - 1; d >= 0; --d) {
    const int64_t span = d == span_dim ? kGroup : 1;
    if (d == span_dim) plan.step = in_memory;
    plan.digits[d] = make_divisor(p.dims[d] / span, plan.units);
    plan.in_memory[d] = in_memory * span;
    plan.in_sample[d] = d == p.batch_dim ? 0 : p.strides[d] * span;
    in_memory *= p.dims[d];
  }
}

inline Plan make_plan(const StepParams& p) {
  Plan plan;
  plan.located = p.noise || p.per_sample;
  if (plan.located && p.permuted) {
    plan_permuted(p, plan);
    return plan;
  }
  plan.count = plan.located ? p.count : p.total;
  const int64_t per_sample = (plan.count + kGroup - 1) / kGroup;
  plan.units = (plan.located ? p.total / p.count : 1) * per_sample;
  plan.per_sample = make_divisor(per_sample, plan.units);
  plan.vector = (!plan.located || plan.count % kGroup == 0) && all_aligned(p);
  return plan;
}

}  // namespace cuda
}  // namespace cmsolvers
