// What losses are made of: forms of one noise, and the size of a weighted sum of tensors. Plain
// parameters and launch declarations; no torch here.
#pragma once

#include "../step/params.h"

namespace cmsolvers {

constexpr int kMaxForms = 6;
constexpr int kMaxTerms = 6;

// outs[j] = weights[j, 0] x + weights[j, 1] z.
struct NoiseFormsParams {
  StepParams place;  // x with its type and layout, and whose noise; the rest is not read
  int n = 0;
  void* outs[kMaxForms] = {};  // in the layout of x
  DType types[kMaxForms] = {};
  const double* weights = nullptr;  // [n, 2, columns], on the device of x
  int64_t columns = 1;              // 1, or one per sample
};

// The size of r = sum_k w_k m_k for one sample.
enum class Size : int8_t {
  square,       // sum r^2
  abs,          // sum |r|
  huber,        // sum sqrt(r^2 + c^2) - c
  pseudo_huber  // sqrt(sum r^2 + c^2) - c
};
constexpr int kSizes = 4;

struct DistanceParams {
  int n = 0;
  const void* inputs[kMaxTerms] = {};  // sample after sample, in one order of elements
  DType types[kMaxTerms] = {};
  bool wide = false;                // arithmetic in float64: some input is
  const double* weights = nullptr;  // [n, columns], on the device of the inputs
  int64_t columns = 1;              // 1, or one per sample
  int64_t batch = 0;
  int64_t count = 0;  // elements per sample
  Size size = Size::square;
  double c = 0.0;

  double* values = nullptr;    // [batch]
  double* partials = nullptr;  // [batch, chunks]; not read where chunks is 1

  // For the derivative: that of the loss by values[b] is grad[b * grad_stride].
  const double* grad = nullptr;
  int64_t grad_stride = 0;
  const double* given_values = nullptr;  // [batch], of the forward pass
  void* grads[kMaxTerms] = {};           // of the inputs; nullptr where none is wanted
};

// Sums are cut into chunks of so many elements, whatever the batch and the threads: the order of
// additions belongs to the sample.
constexpr int64_t kCpuChunk = 8192;
constexpr int64_t kCudaChunk = 16384;

constexpr int64_t chunks_of(int64_t count, int64_t chunk) {
  return count <= chunk ? 1 : (count + chunk - 1) / chunk;
}

// Weights of a consistency pair from its levels.
struct RowsParams {
  const double* sigma = nullptr;  // [batch]
  const double* sigma_next = nullptr;
  int64_t stride = 1, next_stride = 1;
  int64_t batch = 0;
  double sigma_data = 0.5;
  double sigma_min = 0.002;
  double held[3] = {};         // sigma_min as lower precisions hold it
  double* noise = nullptr;     // [4, 2, batch]
  double* residual = nullptr;  // [4, batch]
};

void launch_noise_forms_cpu(const NoiseFormsParams& params);  // x and outs are contiguous
void launch_noise_forms_cuda(const NoiseFormsParams& params, int device, void* stream);
void launch_distance_cpu(const DistanceParams& params);
void launch_distance_cuda(const DistanceParams& params, int device, void* stream);
void launch_distance_backward_cpu(const DistanceParams& params);
void launch_distance_backward_cuda(const DistanceParams& params, int device, void* stream);
void launch_rows_cpu(const RowsParams& params);
void launch_rows_cuda(const RowsParams& params, int device, void* stream);

}  // namespace cmsolvers
