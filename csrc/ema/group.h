// The move of one number of an average, in scalars, for host and device. Every kernel makes it with
// the same two roundings, so the averages are equal to the bit.
#pragma once

#include "../step/group.h"
#include "params.h"

namespace cmsolvers {
namespace CMS_ISA {

// average + w (value - average), written from the nearer end: at w = 1 it is the value, and an
// average never steps beyond the value by rounding.
template <class A>
struct Move {
  A coefficient;
  bool from_value;
};

template <class A>
CMS_HD Move<A> move_of(double weight) {
  const A w = static_cast<A>(weight);
  const bool near = w < A(0.5) && w > A(-0.5);
  return {near ? w : w - A(1), !near};
}

template <class A>
CMS_HD Move<A> move_of(const EmaBatch& batch, int j) {
  return move_of<A>(batch.table == nullptr ? batch.weights[j] : batch.table[j]);
}

template <class A>
CMS_HD A moved(const Move<A>& move, A average, A value) {
  return multiply_add(move.coefficient, value - average, move.from_value ? value : average);
}

// The same where entries may be infinite, as those of masks are: what has no mean is copied.
template <class A>
CMS_HD A moved_or_copied(const Move<A>& move, A average, A value) {
  const A result = moved(move, average, value);
  return result - result == A(0) ? result : value;
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
