#include "arguments.h"

#include <ATen/Functions.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "../step/weights.h"
#include "tensors.h"

namespace cmsolvers {

int input_count(Rule rule, int given) {
  if (rule == Rule::weights || rule == Rule::folded) return given;
  return rule == Rule::heun ? 2 : rule == Rule::edm_input ? 0 : 1;
}

int argument_count(Rule rule, int n_inputs) {
  if (rule == Rule::weights || rule == Rule::folded) return n_inputs + 6;
  return rule == Rule::consistency ? 3 : 2;
}

int tensor_count(Rule rule, int n_inputs) {
  const bool level_alone =
      rule == Rule::consistency || rule == Rule::edm_input || rule == Rule::edm_output;
  return level_alone ? 1 : argument_count(rule, n_inputs);
}

bool in_range(const StepParams& p) {
  const auto positive = [&](int j) { return p.arguments[j].data != nullptr || p.numbers[j] > 0.0; };
  const auto natural = [&](int j) { return p.numbers[j] >= 0.0; };  // 0 stands for tensors
  switch (p.rule) {
    case Rule::pf_ode:
      return positive(0) && natural(1);
    case Rule::heun:
      return positive(0) && positive(1);
    case Rule::consistency:
      return natural(0) && positive(1) && natural(2);
    case Rule::edm_input:
    case Rule::edm_output:
      return natural(0) && positive(1);
    default:
      return true;
  }
}

int argument_place(Rule rule, int j, int n_inputs) {
  const bool weights = rule == Rule::weights || rule == Rule::folded;
  return !weights || j <= n_inputs ? j : j - n_inputs - 1 + kZ;
}

bool describe_argument(StepParams& p, int place, const at::Tensor& value, int64_t batch) {
  DType type;
  if (!find_dtype(value.scalar_type(), type) || value.dim() > 1) return false;
  if (value.dim() == 1 && value.size(0) != 1 && value.size(0) != batch) return false;
  const bool one = value.numel() == 1;
  p.arguments[place] = {value.const_data_ptr(), one ? 0 : value.stride(0), type};
  p.has_tensors = true;
  p.per_sample = p.per_sample || !one;
  return true;
}

void fill_arguments(StepParams& p, const Arguments& given, const at::Tensor& x,
                    at::TensorList written, std::vector<at::Tensor>& kept) {
  TORCH_CHECK_VALUE(given.rule >= 0 && given.rule < kRules, "rule must be 0 to ", kRules - 1,
                    "; got ", given.rule);
  p.rule = static_cast<Rule>(given.rule);
  const int n = p.n_inputs;
  TORCH_CHECK_VALUE(n == input_count(p.rule, n), "inputs must hold ", input_count(p.rule, n),
                    " tensors for rule ", given.rule, "; got ", n);
  TORCH_CHECK_VALUE(p.rule != Rule::folded || n > 0, "inputs must not be empty where x0 is used");
  const int count = argument_count(p.rule, n);
  TORCH_CHECK_VALUE(static_cast<int>(given.numbers.size()) == count, "numbers must hold ", count,
                    " values; got ", given.numbers.size());
  for (int j = 0; j < count; ++j) p.numbers[argument_place(p.rule, j, n)] = given.numbers[j];
  TORCH_CHECK_VALUE(given.places.size() == given.tensors.size(), "places must hold ",
                    given.tensors.size(), " entries, one a tensor; got ", given.places.size());
  const int64_t batch = batch_of(x);
  for (size_t i = 0; i < given.tensors.size(); ++i) {
    const int64_t j = given.places[i];
    TORCH_CHECK_VALUE(j >= 0 && j < tensor_count(p.rule, n),
                      "places must name arguments that may be tensors; got ", j);
    at::Tensor value = given.tensors[i];
    TORCH_CHECK_VALUE(value.device() == x.device(), "tensors[", i, "] must be on the device of x");
    for (const at::Tensor& output : written)
      if (!disjoint(value, output)) kept.push_back(value = value.clone());
    TORCH_CHECK_VALUE(
        describe_argument(p, argument_place(p.rule, static_cast<int>(j), n), value, batch),
        "tensors[", i, "] must be floating of shape [", batch, "], [1] or []; got ",
        value.scalar_type(), " ", value.sizes());
  }
}

void hold_sigma_min(double sigma_min, double* held) {
  const float single = static_cast<float>(sigma_min);
  held[0] = single;
  held[1] = static_cast<float>(c10::Half(single));
  held[2] = static_cast<float>(c10::BFloat16(single));
}

void settle_weights(StepParams& p, bool on_cpu) {
  if (p.rule == Rule::consistency) hold_sigma_min(p.numbers[2], p.numbers + 3);
  if (p.has_tensors && (p.per_sample || !on_cpu)) return;
  double weights[kWeights];
  CMS_ISA::weights_of(p, 0, weights);
  if (!p.has_tensors) CMS_ISA::apply_rule(p.rule, weights);
  std::copy(weights, weights + kWeights, p.numbers);
  std::fill(p.arguments, p.arguments + kWeights, Argument{});
  p.has_tensors = false;
  p.rule = Rule::weights;
}

}  // namespace cmsolvers
