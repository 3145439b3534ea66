// What one CUDA thread does in a weighted step. Host code can call it too: that is how the cutting
// into threads is tested where there is no GPU (tests/cuda/emulate_step.cu).
#pragma once

#include "../cuda/elements.h"
#include "../cuda/plan.h"
#include "group.h"

namespace cmsolvers {
namespace cuda {

using namespace CMS_ISA;

// Where a unit lies: `valid` elements from memory position `position`, `step` apart, which are the
// elements `element`, `element` + 1, ... of `sample`.
struct Unit {
  int64_t sample = 0;
  int64_t element = 0;
  int64_t position = 0;
  int64_t step = 1;
  int valid = kGroup;
};

template <bool kMayBeLocated>
CMS_HD Unit find_unit(const Plan& plan, int64_t index) {
  Unit unit;
  if (kMayBeLocated && plan.located) {
    unit.sample = quotient(index, plan.per_sample);
    index -= unit.sample * plan.per_sample.value;
  }
  unit.element = kGroup * index;
  unit.position = unit.sample * plan.count + unit.element;
  const int64_t left = plan.count - unit.element;
  unit.valid = left < kGroup ? static_cast<int>(left) : kGroup;
  return unit;
}

CMS_HD Unit find_permuted_unit(const Plan& plan, int64_t index) {
  Unit unit;
  unit.step = plan.step;
  unit.valid = plan.span;
  for (int d = plan.n_dims - 1; d >= 0; --d) {
    const int64_t above = quotient(index, plan.digits[d]);
    const int64_t digit = index - above * plan.digits[d].value;
    unit.position += digit * plan.in_memory[d];
    unit.element += digit * plan.in_sample[d];
    if (d == plan.batch_dim) unit.sample = digit;
    index = above;
  }
  return unit;
}

// One unit: all reads first, then the noise while they are on their way, then the arithmetic.
template <class State, class Model, int kInputs, class A>
CMS_HD void step_unit(const StepParams& p, const Row<A>& row, const Unit& unit, bool vector) {
  A x[kGroup] = {};
  A m[kInputs > 0 ? kInputs : 1][kGroup] = {};
  if (reads_x(p, row)) read_group<State>(p.x, unit.position, unit.step, unit.valid, vector, x);
#pragma unroll
  for (int k = 0; k < kInputs; ++k)
    if (reads_input(p, row, k))
      read_group<Model>(p.inputs[k], unit.position, unit.step, unit.valid, vector, m[k]);

  float z[kGroup] = {};
  if (p.noise) {
    const SampleKey key = key_of(p, unit.sample);
    const uint32_t draw = draw_of(p, unit.sample);
    normal4(key, draw, static_cast<uint32_t>(unit.element / kGroup), z);
    if (unit.element % kGroup != 0) z[0] = pick(z, static_cast<uint32_t>(unit.element % kGroup));
  }

  A first[kGroup], second[kGroup];
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    A inputs[kMaxInputs] = {};
#pragma unroll
    for (int k = 0; k < kInputs; ++k) inputs[k] = m[k][j];
    const Outputs<A> outputs = combine<A>(p, row, x[j], inputs, A(z[j]));
    first[j] = outputs.first;
    second[j] = outputs.second;
  }
  if (p.out != nullptr)
    write_group<State>(p.out, unit.position, unit.step, unit.valid, vector, first);
  if (p.second != Second::none)
    write_group(p.second_type, p.second_out, unit.position, unit.step, unit.valid, vector, second);
}

// The units first, first + stride, ... of a plan. Modes that the template rules out are set here to
// what they are, for the compiler to drop their code: kFull allows x0, clamp, a second output (or
// that one alone) and tensors of weights; kPermuted a memory order that is
// not the logical one.
template <class State, class Model, int kInputs, bool kNoise, bool kFull, bool kPermuted>
CMS_HD void step_thread(const StepParams& given, const Plan& plan, int64_t first, int64_t stride) {
  using A = Wide<State>;
  StepParams p = given;
  if (!kNoise) p.noise = false;
  if (!kFull) {
    p.use_x0 = p.clamp = false;
    p.second = Second::none;
    p.has_tensors = p.per_sample = false;
  }
  const auto load = [&](int64_t sample) {
    Row<A> row = load_row<A>(p, sample);
#pragma unroll
    for (int k = kInputs; k < kMaxInputs; ++k) row.w[kInput + k] = A(0);
    return row;
  };

  Row<A> row = {};
  if (first < plan.units && !p.per_sample) row = load(0);
  for (int64_t index = first; index < plan.units; index += stride) {
    const Unit unit =
        kPermuted ? find_permuted_unit(plan, index) : find_unit < kNoise || kFull > (plan, index);
    if (p.per_sample) row = load(unit.sample);
    step_unit<State, Model, kInputs>(p, row, unit, !kPermuted && plan.vector);
  }
}

}  // namespace cuda
}  // namespace cmsolvers
