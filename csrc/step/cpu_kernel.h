// The CPU kernel: blocks of a few hundred elements, noise into a buffer in L1, then one fused loop
// over the terms. The sources that include this bring `Lanes` and compile it for one instruction
// set; the loops vectorise by themselves.
#pragma once

#include <algorithm>

#include "../cpu/convert.h"
#include "../cpu/stream_store.h"
#include "../cpu/twice.h"
#include "group.h"

namespace cmsolvers {
namespace CMS_ISA {

constexpr int kBlock = 512;
constexpr int kGroupLanes = 4 * Lanes::width;

// Four normals per lane from its random words, lane after lane.
inline void deliver(const Lanes::U (&r)[4], float* out) {
  using Both = Twice<Lanes>;
  Both::F even, odd;
  box_muller<Both>(Both::U{r[0], r[2]}, Both::U{r[1], r[3]}, even, odd);
  const Lanes::F z[4] = {even.a, odd.a, even.b, odd.b};
  Lanes::store_interleaved(z, out);
}

// `n` normals of one sample, rounded up to whole vectors of groups. All random words come first:
// the two kinds of work overlap less well than each does with itself. `meanwhile(first, n)` is
// called beside them for every part of the block, to move memory.
template <class Meanwhile>
inline void normals_of_sample(const SampleRounds& rounds, uint32_t group, int n, float* out,
                              const Meanwhile& meanwhile) {
  alignas(64) uint32_t words[kBlock + 2 * kGroupLanes];
  for (int done = 0; done < n; done += kGroupLanes, group += Lanes::width) {
    meanwhile(done, kGroupLanes);
    Lanes::U r[4];
    Lanes::philox_sample(group, rounds, r);
    for (int j = 0; j < 4; ++j) Lanes::store_words(r[j], words + done + j * Lanes::width);
  }
  for (int done = 0; done < n; done += kGroupLanes) {
    Lanes::U r[4];
    for (int j = 0; j < 4; ++j) r[j] = Lanes::load_words(words + done + j * Lanes::width);
    deliver(r, out + done);
  }
}

// Lanes of different groups and samples, computed when full; each delivers some of its four
// values.
class Gatherer {
 public:
  explicit Gatherer(float* out) : out_(out) {}

  // Values `from` .. `from` + n - 1 of the group go to out[place] on.
  void push(const SampleKey& key, uint32_t draw, uint32_t group, int from, int n, int place) {
    c0_[filled_] = group;
    c1_[filled_] = draw;
    c2_[filled_] = key.c2;
    c3_[filled_] = key.c3;
    k0_[filled_] = key.k0;
    k1_[filled_] = key.k1;
    from_[filled_] = from;
    n_[filled_] = n;
    place_[filled_] = place;
    if (++filled_ == Lanes::width) flush();
  }

  void flush() {
    if (filled_ == 0) return;
    alignas(64) float z[kGroupLanes];
    Lanes::U r[4] = {Lanes::load_words(c0_), Lanes::load_words(c1_), Lanes::load_words(c2_),
                     Lanes::load_words(c3_)};
    Lanes::philox_lanes(r, Lanes::load_words(k0_), Lanes::load_words(k1_));
    deliver(r, z);
    for (int lane = 0; lane < filled_; ++lane)
      for (int j = 0; j < n_[lane]; ++j) out_[place_[lane] + j] = z[4 * lane + from_[lane] + j];
    filled_ = 0;
  }

 private:
  float* out_;
  int filled_ = 0;
  alignas(64) uint32_t c0_[Lanes::width] = {}, c1_[Lanes::width] = {}, c2_[Lanes::width] = {},
                       c3_[Lanes::width] = {}, k0_[Lanes::width] = {}, k1_[Lanes::width] = {};
  int from_[Lanes::width] = {}, n_[Lanes::width] = {}, place_[Lanes::width] = {};
};

// Samples of at most four elements, one per lane: sample ids count up as groups do elsewhere.
inline const float* fill_tiny_samples(const StepParams& p, int64_t sample, int n, float* out) {
  const int count = static_cast<int>(p.count);
  const SampleKey key = key_of(p, sample);
  alignas(64) float z[kGroupLanes];
  int lane = Lanes::width;
  uint32_t c2 = key.c2;
  for (int i = 0; i < n; i += count, ++lane) {
    if (lane == Lanes::width) {
      Lanes::U r[4] = {Lanes::set_word(0), Lanes::set_word(p.draw), Lanes::counting(c2),
                       Lanes::set_word(key.c3)};
      Lanes::philox_lanes(r, Lanes::set_word(key.k0), Lanes::set_word(key.k1));
      deliver(r, z);
      c2 += Lanes::width;
      lane = 0;
    }
    // `out` has room beyond n for a whole lane.
    __builtin_memcpy(out + i, z + 4 * lane, 4 * sizeof(float));
  }
  return out;
}

// The noise of memory positions first .. first + n - 1. `out` has room for kBlock + kGroupLanes
// values; the result may begin inside it.
template <class Meanwhile>
inline const float* fill_noise(const StepParams& p, int64_t first, int n, float* out,
                               const Meanwhile& meanwhile) {
  int64_t sample, element;
  locate(p, first, sample, element);
  if (!p.permuted && element + n <= p.count && n >= Lanes::width) {  // all in one sample
    const SampleRounds rounds(key_of(p, sample), draw_of(p, sample));
    const int skip = static_cast<int>(element & 3);
    normals_of_sample(rounds, static_cast<uint32_t>(element >> 2), n + skip, out, meanwhile);
    return out + skip;
  }
  meanwhile(0, n);
  if (!p.permuted && p.count <= 4 && p.key == nullptr && element == 0 &&
      static_cast<uint32_t>(p.offset + sample) <= 0xFFFFFFFFu - kBlock) {
    return fill_tiny_samples(p, sample, n, out);
  }
  Gatherer lanes(out);
  if (p.permuted) {
    for (int i = 0; i < n; ++i) {
      locate(p, first + i, sample, element);
      lanes.push(key_of(p, sample), draw_of(p, sample), static_cast<uint32_t>(element >> 2),
                 element & 3, 1, i);
    }
  } else {
    for (int i = 0; i < n;) {
      const int from = static_cast<int>(element & 3);
      const int take = static_cast<int>(
          std::min<int64_t>({int64_t{4} - from, p.count - element, int64_t{n} - i}));
      lanes.push(key_of(p, sample), draw_of(p, sample), static_cast<uint32_t>(element >> 2), from,
                 take, i);
      i += take;
      element += take;
      if (element == p.count) {
        element = 0;
        ++sample;
      }
    }
  }
  lanes.flush();
  return out;
}

// out = w[0] t[0] (+ w[1] t[1] ...), fused; `from_zero` where the first term is not x (a sum from
// +0). `out` may be one of the terms, exactly: an element is read before it is written.
template <class A, int terms>
inline void affine(A* out, const A* const* t, const A* w, bool from_zero, int n) {
  const A start = A(0);
  const A *t0 = t[0], *t1 = t[terms > 1 ? 1 : 0], *t2 = t[terms > 2 ? 2 : 0],
          *t3 = t[terms > 3 ? 3 : 0], *t4 = t[terms > 4 ? 4 : 0], *t5 = t[terms > 5 ? 5 : 0];
  const A w0 = w[0], w1 = w[terms > 1 ? 1 : 0], w2 = w[terms > 2 ? 2 : 0],
          w3 = w[terms > 3 ? 3 : 0], w4 = w[terms > 4 ? 4 : 0], w5 = w[terms > 5 ? 5 : 0];
  auto sum = [&](int i, A first) __attribute__((always_inline)) {
    if constexpr (terms > 1) first = multiply_add(w1, t1[i], first);
    if constexpr (terms > 2) first = multiply_add(w2, t2[i], first);
    if constexpr (terms > 3) first = multiply_add(w3, t3[i], first);
    if constexpr (terms > 4) first = multiply_add(w4, t4[i], first);
    if constexpr (terms > 5) first = multiply_add(w5, t5[i], first);
    out[i] = first;
  };
  if (from_zero) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) sum(i, multiply_add(w0, t0[i], start));
  } else {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) sum(i, w0 * t0[i]);
  }
}

template <class A>
struct Terms {
  const A* values[6];
  A weights[6];
  int count = 0;
  bool from_zero = true;

  void add(A weight, const A* value, bool is_x = false) {
    if (weight == A(0)) return;
    if (is_x) from_zero = false;
    values[count] = value;
    weights[count++] = weight;
  }

  void sum(A* out, int n) const {
    switch (count) {
      case 0:
        std::fill(out, out + n, A(0));
        return;
      case 1:
        return affine<A, 1>(out, values, weights, from_zero, n);
      case 2:
        return affine<A, 2>(out, values, weights, from_zero, n);
      case 3:
        return affine<A, 3>(out, values, weights, from_zero, n);
      case 4:
        return affine<A, 4>(out, values, weights, from_zero, n);
      case 5:
        return affine<A, 5>(out, values, weights, from_zero, n);
      default:
        return affine<A, 6>(out, values, weights, from_zero, n);
    }
  }
};

template <class A>
inline void clamp_block(A* values, A low, A high, int n) {
  for (int i = 0; i < n; ++i) {
    A v = values[i];
    v = v < low ? low : v;
    values[i] = v > high ? high : v;
  }
}

template <class A>
inline void prefetch(const A* from, int first, int n) {
  if (from == nullptr) return;
  for (int i = first; i < first + n; i += static_cast<int>(64 / sizeof(A)))
    __builtin_prefetch(from + i);
}

// A finished block on its way past the caches, piece by piece while the noise of the next one is
// made: stores in one rush would fill the store buffers and hold up the arithmetic.
struct Leaving {
  const float* from = nullptr;
  float* to = nullptr;
  int n = 0;

  void some(int most) {
    const int now = std::min(most, n);
    stream_store(from, to, now);
    from += now;
    to += now;
    n -= now;
  }
  void all() { some(n); }
};

// Scratch of one block; what a common step touches of it stays in L1.
template <class A>
struct Scratch {
  alignas(64) A x[kBlock], m[kMaxInputs][kBlock], z_wide[kBlock], basis[kBlock], sums[2][kBlock],
      other[kBlock];
  alignas(64) float z[kBlock + 2 * kGroupLanes];
  A* sum = sums[0];
  Leaving leaving;
};

template <class A>
inline void one_block(const StepParams& p, const Row<A>& row, int64_t first, int n, bool stream,
                      Scratch<A>& s) {
  const A* x = reads_x(p, row) ? load_block(p.x, p.state, first, n, s.x) : nullptr;
  const A* m[kMaxInputs] = {};
  for (int k = 0; k < p.n_inputs; ++k)
    if (reads_input(p, row, k)) m[k] = load_block(p.inputs[k], p.model, first, n, s.m[k]);
  const A* z = nullptr;
  if (p.noise) {
    const float* drawn =
        fill_noise(p, first, n, s.z, [&](int from, int some) __attribute__((always_inline)) {
          prefetch(x, from, some);  // it arrives while the noise is made
          for (int k = 0; k < p.n_inputs; ++k) prefetch(m[k], from, some);
          s.leaving.some(some);
        });
    if constexpr (sizeof(A) == 4) {
      z = drawn;
    } else {
      widen(drawn, s.z_wide, n);
      z = s.z_wide;
    }
  }
  // Outputs that are arrays of A are written where they lie, others by way of the scratch.
  constexpr DType wide = sizeof(A) == 8 ? DType::f64 : DType::f32;
  const bool out_in_place = !stream && p.out != nullptr && p.state == wide;
  const bool second_in_place = p.second != Second::none && p.second_type == wide;
  A* const sum = out_in_place ? static_cast<A*>(p.out) + first : s.sum;
  A* const other = second_in_place ? static_cast<A*>(p.second_out) + first : s.other;
  if (p.use_x0) {
    A* const basis = p.second == Second::x0 ? other : s.basis;
    Terms<A> terms;
    terms.add(row.w[kSkip], x, true);
    terms.add(row.w[kOut], m[0]);
    terms.sum(basis, n);
    if (p.clamp) clamp_block(basis, static_cast<A>(p.low), static_cast<A>(p.high), n);
    m[0] = basis;
  }
  if (p.second == Second::pair) {  // before the first output, which may be x itself
    Terms<A> pair;
    pair.add(row.w[kS0], x, true);
    if (p.noise) pair.add(row.w[kS1], z);
    pair.sum(other, n);
  }
  Terms<A> terms;
  terms.add(row.w[kX], x, true);
  for (int k = 0; k < p.n_inputs; ++k) terms.add(row.w[kInput + k], m[k]);
  if (p.noise) terms.add(row.w[kZ], z);
  if (p.out != nullptr || p.second == Second::scaled) terms.sum(sum, n);
  if (p.second == Second::scaled) {
    const A scale = row.w[kS0];
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) other[i] = scale * sum[i];
  }
  if (p.out == nullptr || out_in_place) {
    // nobody reads it, or it is there already
  } else if (stream && sizeof(A) == 4 && p.state == DType::f32) {
    s.leaving.all();
    s.leaving = {reinterpret_cast<const float*>(sum), static_cast<float*>(p.out) + first, n};
    const bool whole_lines = (reinterpret_cast<uintptr_t>(s.leaving.to) & 63) == 0;
    if (!p.noise || !whole_lines) s.leaving.all();
    s.sum = s.sum == s.sums[0] ? s.sums[1] : s.sums[0];
  } else {
    store_block(sum, p.out, p.state, first, n);
  }
  if (p.second != Second::none && !second_in_place)
    store_block(other, p.second_out, p.second_type, first, n);
}

// Whether the step is nothing but one sum over arrays of A: then no block needs scratch.
template <class A>
inline bool is_plain(const StepParams& p) {
  const DType wide = sizeof(A) == 8 ? DType::f64 : DType::f32;
  return !p.noise && !p.use_x0 && p.second == Second::none && !p.per_sample && p.state == wide &&
         (p.n_inputs == 0 || p.model == wide);
}

template <class A>
inline void run_plain(const StepParams& p, const Row<A>& row, int64_t begin, int64_t end) {
  constexpr int64_t kMost = 1 << 20;
  for (int64_t at = begin; at < end; at += kMost) {
    Terms<A> terms;
    terms.add(row.w[kX], static_cast<const A*>(p.x) + at, true);
    for (int k = 0; k < p.n_inputs; ++k)
      terms.add(row.w[kInput + k], static_cast<const A*>(p.inputs[k]) + at);
    terms.sum(static_cast<A*>(p.out) + at, static_cast<int>(std::min(kMost, end - at)));
  }
}

template <class A>
inline void run_range(const StepParams& p, int64_t begin, int64_t end, bool stream) {
  Scratch<A> scratch;
  if (!p.per_sample) {
    const Row<A> row = load_row<A>(p, 0);
    if (!stream && is_plain<A>(p)) return run_plain(p, row, begin, end);
    for (int64_t at = begin; at < end; at += kBlock)
      one_block(p, row, at, static_cast<int>(std::min<int64_t>(kBlock, end - at)), stream, scratch);
    if (stream) {
      scratch.leaving.all();
      stream_fence();
    }
    return;
  }
  // Each sample has its own weights: blocks end where samples do.
  Row<A> row = {};
  int64_t loaded = -1;
  const bool in_turn = !p.permuted || p.batch_dim == 0;  // samples lie one after the other
  for (int64_t at = begin; at < end;) {
    int64_t sample, element;
    locate(p, at, sample, element);
    if (sample != loaded) row = load_row<A>(p, loaded = sample);
    const int64_t left = in_turn ? (sample + 1) * p.count - at : 1;
    const int n = static_cast<int>(std::min<int64_t>({int64_t{kBlock}, end - at, left}));
    one_block(p, row, at, n, false, scratch);
    at += n;
  }
}

inline void run(const StepParams& p, int64_t begin, int64_t end, bool stream) {
  if (p.state == DType::f64)
    run_range<double>(p, begin, end, stream);
  else
    run_range<float>(p, begin, end, stream);
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
