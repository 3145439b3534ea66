// The weighted step: x' = w_x x + sum_k w_k m_k + w_z z, with an optional clamped x0 and an
// optional second output. Plain parameters and launch declarations; no torch here.
#pragma once

#include <cstdint>

namespace cmsolvers {

constexpr int kMaxInputs = 4;
constexpr int kMaxDims = 16;

enum class DType : int8_t { f64, f32, f16, bf16 };

// In bytes.
constexpr int64_t size_of(DType type) {
  return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2;
}

// What the second output is: nothing; s0 x'; D; s0 x + s1 z.
enum class Second : int8_t { none, scaled, x0, pair };

// The weights of one sample, by position.
enum Weight : int {
  kX = 0,
  kInput = 1,
  kZ = 5,
  kSkip = 6,
  kOut = 7,
  kS0 = 8,
  kS1 = 9,
  kWeights = 10
};

// What the arguments of a step are, and where each has its place among kWeights of them.
enum class Rule : int8_t {
  weights,         // the weights themselves
  pf_ode,          // 0 sigma, 1 sigma'; the weights of ops.pf_ode_step
  heun,            // 0 sigma, 1 sigma'; those of the corrector of ops.heun_step
  consistency,     // 0 sigma, 1 sigma_data, 2 sigma_min; those of ops.consistency_output (3 to 5:
                   // sigma_min as float32, float16 and bfloat16 hold it, from settle_weights)
  edm_input,       // 0 sigma, 1 sigma_data; that of ops.edm_input, as s0 too
  edm_output,      // 0 sigma, 1 sigma_data; those of ops.edm_output
  euler_maruyama,  // 0 diffusion, 1 dt; those of ops.euler_maruyama_step
  folded           // the weights, with c_skip and c_out still to be put into w_x and w_1
};
constexpr int kRules = 8;

// An argument that is a tensor: data[sample * stride], on the device of x.
struct Argument {
  const void* data = nullptr;  // nullptr: the argument is a number
  int64_t stride = 0;          // in elements; 0: one value serves all samples
  DType type = DType::f64;
};

struct StepParams {
  const void* x = nullptr;
  const void* inputs[kMaxInputs] = {};
  void* out = nullptr;  // nullptr: only the second output is wanted
  void* second_out = nullptr;
  int n_inputs = 0;
  DType state = DType::f32;  // x, out
  DType model = DType::f32;  // inputs
  DType second_type = DType::f32;

  // Memory holds `total` elements in some dense order: position p is element e of sample b. Where
  // `permuted` is false, b = p / count and e = p % count. Else p's digits in the radices dims[]
  // (slowest first) give e = sum digit stride and b = the digit of dimension batch_dim (-1: there
  // is only sample 0).
  int64_t total = 0;
  int64_t count = 1;  // elements per sample
  bool permuted = false;
  int n_dims = 0;
  int batch_dim = -1;
  int64_t dims[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};

  // The arguments. Without tensors among them the rule has been applied already: numbers[] then
  // holds the weights of all samples.
  Rule rule = Rule::weights;
  bool has_tensors = false;
  bool per_sample = false;  // some tensor has one entry per sample
  double numbers[kWeights] = {};
  Argument arguments[kWeights] = {};

  bool use_x0 = false;  // D = clamp(c_skip x + c_out m_0) takes the place of m_0
  bool clamp = false;
  double low = 0.0;
  double high = 0.0;
  Second second = Second::none;

  bool noise = false;
  uint32_t stream = 0;
  uint32_t draw = 0;
  uint64_t seed = 0;
  uint64_t offset = 0;
  // On the device of x: rows (seed, id), or (seed, id, draw) where the width is 3; they replace
  // seed, offset and draw.
  const int64_t* key = nullptr;
  int key_width = 2;
  bool key_per_sample = false;  // else the one row's id counts up with the sample
};

void launch_step_cpu(const StepParams& params);
void launch_step_cuda(const StepParams& params, int device, void* stream);

}  // namespace cmsolvers
