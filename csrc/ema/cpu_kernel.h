// Moving averages on the CPU: a block of values is widened once and moves every average from L1.
// The loops vectorise by themselves; compiled for one instruction set, as the kernel of the step
// is.
#pragma once

#include <algorithm>

#include "../cpu/convert.h"
#include "group.h"

namespace cmsolvers {
namespace CMS_ISA {

constexpr int kEmaBlock = 1024;

template <class A>
inline void move_block(const Move<A>& move, const A* value, A* average, int n) {
  // A value may be its own average; apart from that they share no memory.
  if (move.from_value) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i)
      average[i] = multiply_add(move.coefficient, value[i] - average[i], value[i]);
  } else {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i)
      average[i] = multiply_add(move.coefficient, value[i] - average[i], average[i]);
  }
}

template <class A>
inline void move_or_copy_block(const Move<A>& move, const A* value, A* average, int n) {
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) average[i] = moved_or_copied(move, average[i], value[i]);
}

template <class A>
inline const A* load_values(const EmaTensor& t, int64_t first, int n, A* buffer) {
  if constexpr (sizeof(A) == 4) {
    if (t.value_type == DType::f64) {
      narrow(static_cast<const double*>(t.value) + first, buffer, n);
      return buffer;
    }
  }
  return load_block<A>(t.value, t.value_type, first, n, buffer);
}

// Numbers begin .. end - 1 of one tensor.
template <class A>
inline void move_tensor(const EmaBatch& batch, const EmaTensor& t, int64_t begin, int64_t end) {
  alignas(64) A buffer[kEmaBlock];
  Move<A> moves[kMaxAverages];
  for (int j = 0; j < batch.k; ++j) moves[j] = move_of<A>(batch, j);
  for (int64_t at = begin; at < end; at += kEmaBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kEmaBlock, end - at));
    const A* value = load_values<A>(t, at, n, buffer);
    for (int j = 0; j < batch.k; ++j) {
      A* average = static_cast<A*>(t.averages[j]) + at;
      if (t.infinities)
        move_or_copy_block(moves[j], value, average, n);
      else
        move_block(moves[j], value, average, n);
    }
  }
}

// Positions begin .. end - 1 in the row of all numbers.
inline void run_ema(const EmaBatch& batch, int64_t begin, int64_t end) {
  const int64_t* after = std::upper_bound(batch.first, batch.first + batch.n + 1, begin);
  for (int64_t i = after - batch.first - 1; i < batch.n && batch.first[i] < end; ++i) {
    const EmaTensor& t = batch.tensors[i];
    const int64_t from = std::max(begin - batch.first[i], int64_t{0});
    const int64_t to = std::min(end - batch.first[i], t.count);
    if (t.type == DType::f64)
      move_tensor<double>(batch, t, from, to);
    else
      move_tensor<float>(batch, t, from, to);
  }
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
