// What the argument checks of every operator share.
#pragma once

#include <ATen/core/Tensor.h>

#include "../step/params.h"

namespace cmsolvers {

// Whether the kernels know this dtype, and as what.
bool find_dtype(at::ScalarType type, DType& found);

// The same; throws where they do not.
DType dtype_of(at::ScalarType type);

// Whether inputs of dtype `model` go with a state: the same dtype, or one of lower precision.
bool model_fits(DType model, DType state);

// How many samples: a tensor without dimensions is one.
int64_t batch_of(const at::Tensor& tensor);

// Whether the memory between the first and the last element of both has nothing in common.
bool disjoint(const at::Tensor& a, const at::Tensor& b);

// Whether noise can be drawn for samples of this size: the contract counts groups in 32 bits.
bool drawable(const at::Tensor& tensor);

// Whether kernels can read the table of keys in place for the samples of x, and fills in how.
bool describe_key(StepParams& params, const at::Tensor& key, const at::Tensor& x);

// The same, checked; what it returns must outlive the launch (a copy where the table is not
// contiguous).
at::Tensor take_key(StepParams& params, const at::Tensor& key, const at::Tensor& x);

// Tells autograd that a tensor was written in place, so that a backward pass that saved it refuses
// to run.
void mark_written(const at::Tensor& tensor);

}  // namespace cmsolvers
