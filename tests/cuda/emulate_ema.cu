// The work of the CUDA kernel of moving averages, thread by thread on the host, against one plain
// loop over memory, as emulate_step.cu does it for the steps. Exit status 0 if all agree.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/ema/thread.h"

using namespace cmsolvers;
using namespace cmsolvers::cuda;

namespace {

constexpr int kGuard = 16;
const double kWeights3[] = {0.001, 0.5, 1.0, 0.25};

int checks = 0, failures = 0;

template <class T>
std::vector<T> numbers(int64_t count, int seed) {
  std::vector<T> made(static_cast<size_t>(count + 2 * kGuard));
  uint32_t state = 12345u + 977u * static_cast<uint32_t>(seed);
  for (T& one : made) {
    state = state * 1664525u + 1013904223u;
    one = narrow<T>(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-30f);
  }
  return made;
}

// The formula once more, in its two cases.
template <class A>
A by_hand(double weight, A average, A value, bool infinities) {
  const A w = static_cast<A>(weight);
  const A result = std::fabs(w) < A(0.5) ? std::fma(w, value - average, average)
                                         : std::fma(w - A(1), value - average, value);
  return infinities && !std::isfinite(result) ? value : result;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Tensors of `counts` numbers, the memory of number `shifted` not aligned to vectors.
template <class A, class V, int K>
void check(DType type, DType value_type, const std::vector<int64_t>& counts, size_t shifted,
           bool by_table) {
  std::vector<std::vector<V>> values;
  std::vector<std::vector<A>> averages[K], expected[K];
  EmaTable<K> table;
  if (by_table) table.table = kWeights3;
  for (int j = 0; j < K; ++j) table.weights[j] = by_table ? 0.0 : kWeights3[j];
  for (size_t i = 0; i < counts.size(); ++i) {
    values.push_back(numbers<V>(counts[i] + 1, static_cast<int>(i)));
    const bool infinities = i % 2 == 1;
    const int shift = i == shifted ? 1 : 0;
    if (infinities) values[i][kGuard + shift] = narrow<V>(std::numeric_limits<float>::infinity());
    EmaTensor t;
    t.type = type;
    t.value_type = value_type;
    t.count = counts[i];
    t.infinities = infinities;
    t.value = values[i].data() + kGuard + shift;
    for (int j = 0; j < K; ++j) {
      averages[j].push_back(numbers<A>(counts[i] + 1, static_cast<int>(i) + 100 * (j + 1)));
      expected[j].push_back(averages[j][i]);
      t.averages[j] = averages[j][i].data() + kGuard + shift;
      for (int64_t m = kGuard + shift; m < kGuard + shift + counts[i]; ++m)
        expected[j][i][static_cast<size_t>(m)] =
            by_hand<A>(kWeights3[j], averages[j][i][static_cast<size_t>(m)],
                       static_cast<A>(widen(values[i][static_cast<size_t>(m)])), infinities);
    }
    if (!append(table, t)) {
      ++failures;
      std::printf("the table is full after %d tensors\n", table.n);
    }
  }
  for (uint32_t chunk = 0; chunk < table.first[table.n]; ++chunk)
    for (int thread = 0; thread < kEmaThreads; ++thread) ema_thread<A, V, K>(table, chunk, thread);
  ++checks;
  bool all = true;
  for (int j = 0; j < K; ++j)
    for (size_t i = 0; i < counts.size(); ++i) all = all && same(averages[j][i], expected[j][i]);
  if (all) return;
  ++failures;
  std::printf("%zu and %zu bytes, %d averages, %zu tensors, shifted %zu differ\n", sizeof(A),
              sizeof(V), K, counts.size(), shifted);
}

template <class A, class V, int K>
void check_shapes(DType type, DType value_type) {
  const std::vector<std::vector<int64_t>> shapes = {
      {1}, {3, 4, 5}, {kEmaChunk, 1, kEmaChunk + 1}, {2 * kEmaChunk + 1027, 7, 4096, 8}};
  for (const auto& counts : shapes)
    for (const size_t shifted : {size_t{0}, size_t{1}, size_t{99}})
      for (const bool by_table : {false, true})
        check<A, V, K>(type, value_type, counts, shifted, by_table);
  const std::vector<int64_t> most(EmaTable<K>::kTensors, 5);
  check<A, V, K>(type, value_type, most, 3, false);
}

template <class A, class V>
void check_counts(DType type, DType value_type) {
  check_shapes<A, V, 1>(type, value_type);
  check_shapes<A, V, 3>(type, value_type);
  check_shapes<A, V, 4>(type, value_type);
}

template <class A>
void check_values(DType type) {
  check_counts<A, double>(type, DType::f64);
  check_counts<A, float>(type, DType::f32);
  check_counts<A, Half>(type, DType::f16);
  check_counts<A, BFloat>(type, DType::bf16);
}

// One more than the table holds is refused, and leaves it as it was.
void check_full() {
  EmaTable<2> table;
  EmaTensor t;
  t.count = 5;
  ++checks;
  while (table.n < EmaTable<2>::kTensors && append(table, t)) {
  }
  if (table.n == EmaTable<2>::kTensors && !append(table, t) &&
      table.first[table.n] == static_cast<uint32_t>(table.n))
    return;
  ++failures;
  std::printf("a full table took one more tensor\n");
}

}  // namespace

int main() {
  check_values<float>(DType::f32);
  check_values<double>(DType::f64);
  check_full();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
