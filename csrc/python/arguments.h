// The arguments of a step: numbers, and tensors that the kernels read themselves.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../step/params.h"

namespace cmsolvers {

// How many inputs a rule goes with; those of the weights themselves with as many as are given.
int input_count(Rule rule, int given);

// How many arguments a rule takes with n inputs.
int argument_count(Rule rule, int n_inputs);

// Whether the rule accepts every number among the arguments. It refuses levels below 0, and 0 where
// it divides by them.
bool in_range(const StepParams& params);

// How many arguments, the first ones, may be tensors.
int tensor_count(Rule rule, int n_inputs);

// Where argument j stands among kWeights.
int argument_place(Rule rule, int j, int n_inputs);

// Whether `value` can be read in place as the argument of `batch` samples, and fills in how.
bool describe_argument(StepParams& params, int place, const at::Tensor& value, int64_t batch);

// The arguments as the operators carry them: numbers, and tensors[i] in place of
// numbers[places[i]].
struct Arguments {
  c10::ArrayRef<double> numbers;
  at::TensorList tensors;
  at::IntArrayRef places;
  int64_t rule;
};

// Fills in all arguments, checked. An argument that shares memory with one of the tensors that will
// be written is copied first; `kept` receives the copies.
void fill_arguments(StepParams& params, const Arguments& given, const at::Tensor& x,
                    at::TensorList written, std::vector<at::Tensor>& kept);

// sigma_min as tensors of levels in float32, float16 and bfloat16 hold it.
void hold_sigma_min(double sigma_min, double* held);

// To be called when all arguments are there. Where their values are known (numbers; on the CPU
// tensors of one value too) the weights are made now and serve all samples.
void settle_weights(StepParams& params, bool on_cpu);

}  // namespace cmsolvers
