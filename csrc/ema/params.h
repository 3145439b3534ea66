// Exponential moving averages of a network's tensors, average <- average + w (value - average):
// several of them in one pass over the values. Plain parameters and launch declarations; no torch
// here.
#pragma once

#include "../step/params.h"

namespace cmsolvers {

constexpr int kMaxAverages = 4;  // in one pass

// One tensor of a network and its averages: `count` numbers each, in the same order of memory.
struct EmaTensor {
  const void* value = nullptr;
  void* averages[kMaxAverages] = {};
  int64_t count = 0;
  DType type = DType::f32;  // of the averages: f64 or f32, the arithmetic's too
  DType value_type = DType::f32;
  bool infinities = false;  // an average that is not finite becomes the value
};

// Tensors on one device, none of them empty; no average shares memory with another tensor.
struct EmaBatch {
  const EmaTensor* tensors = nullptr;
  const int64_t* first = nullptr;  // n + 1 positions: where each begins in the row of all numbers
  int n = 0;
  int k = 0;  // averages of each
  double weights[kMaxAverages] = {};
  const double* table = nullptr;  // k weights on the device, in place of `weights`
};

void launch_ema_cpu(const EmaBatch& batch);
void launch_ema_cuda(const EmaBatch& batch, int device, void* stream);

}  // namespace cmsolvers
