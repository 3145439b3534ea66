// What one CUDA thread does for moving averages. Host code can call it too.
#pragma once

#include "../cuda/elements.h"
#include "group.h"

namespace cmsolvers {
namespace cuda {

using namespace CMS_ISA;

constexpr int kEmaThreads = 256;
constexpr int64_t kEmaChunk = int64_t{4} * kEmaThreads * kGroup;  // numbers of a tensor, per block

constexpr uint8_t kVector = 1;      // every pointer allows vector access
constexpr uint8_t kInfinities = 2;  // an average that is not finite becomes the value

// Kernel parameters hold 4 KB; each tensor takes 13 bytes and one pointer more than averages.
constexpr int ema_capacity(int k) {
  return (4096 - 128) / (8 * k + 21);
}

// What one launch works on: tensors of one dtype, cut into chunks that are numbered through.
template <int K>
struct EmaTable {
  static constexpr int kTensors = ema_capacity(K);

  int n = 0;
  double weights[K] = {};
  const double* table = nullptr;  // replaces weights
  const void* values[kTensors] = {};
  void* averages[K][kTensors] = {};
  int64_t counts[kTensors] = {};
  uint32_t first[kTensors + 1] = {};  // chunk that each begins with; the last entry is their number
  uint8_t flags[kTensors] = {};
};
static_assert(sizeof(EmaTable<1>) <= 4096 && sizeof(EmaTable<2>) <= 4096);
static_assert(sizeof(EmaTable<3>) <= 4096 && sizeof(EmaTable<4>) <= 4096);

inline uint8_t ema_flags(const EmaTensor& t, int k) {
  bool vector = aligned(t.value, t.value_type);
  for (int j = 0; j < k; ++j) vector = vector && aligned(t.averages[j], t.type);
  return static_cast<uint8_t>((vector ? kVector : 0) | (t.infinities ? kInfinities : 0));
}

// Appends a tensor; false where the table is full.
template <int K>
bool append(EmaTable<K>& p, const EmaTensor& t) {
  const int64_t chunks = (t.count + kEmaChunk - 1) / kEmaChunk;
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  if (p.n == p.kTensors || (p.n > 0 && p.first[p.n] + chunks > kMostBlocks)) return false;
  p.values[p.n] = t.value;
  for (int j = 0; j < K; ++j) p.averages[j][p.n] = t.averages[j];
  p.counts[p.n] = t.count;
  p.flags[p.n] = ema_flags(t, K);
  p.first[p.n + 1] = p.first[p.n] + static_cast<uint32_t>(chunks);
  ++p.n;
  return true;
}

// The tensor that a chunk belongs to.
template <int K>
CMS_HD int find_tensor(const EmaTable<K>& p, uint32_t chunk) {
  int low = 0, high = p.n;  // first[low] <= chunk < first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.first[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The share of thread number `thread` of a block in one chunk. A: the averages' type; V: the
// values'.
template <class A, class V, int K>
CMS_HD void ema_thread(const EmaTable<K>& p, uint32_t chunk, int thread) {
  const int t = find_tensor(p, chunk);
  const bool vector = (p.flags[t] & kVector) != 0;
  const bool infinities = (p.flags[t] & kInfinities) != 0;
  const int64_t begin = (chunk - p.first[t]) * kEmaChunk;
  const int64_t left = p.counts[t] - begin;
  const int64_t end = begin + (left < kEmaChunk ? left : kEmaChunk);
  Move<A> moves[K];
#pragma unroll
  for (int j = 0; j < K; ++j) moves[j] = move_of<A>(p.table == nullptr ? p.weights[j] : p.table[j]);
  for (int64_t at = begin + thread * kGroup; at < end; at += kEmaThreads * kGroup) {
    const int valid = static_cast<int>(end - at < kGroup ? end - at : kGroup);
    A value[kGroup], average[K][kGroup];
    read_group<V>(p.values[t], at, 1, valid, vector, value);
#pragma unroll
    for (int j = 0; j < K; ++j)  // all loads are on their way before the first is waited for
      read_group<A>(p.averages[j][t], at, 1, valid, vector, average[j]);
#pragma unroll
    for (int j = 0; j < K; ++j) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        average[j][i] = infinities ? moved_or_copied(moves[j], average[j][i], value[i])
                                   : moved(moves[j], average[j][i], value[i]);
      write_group<A>(p.averages[j][t], at, 1, valid, vector, average[j]);
    }
  }
}

}  // namespace cuda
}  // namespace cmsolvers
