#include "reduction.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "../python/plain.h"

namespace cmsolvers {
namespace {

at::Tensor made(at::IntArrayRef shape, at::ScalarType type) {
  return at::Tensor(at::detail::empty_cpu(shape, type));
}

at::Tensor scalar(double number, at::ScalarType type) {
  at::Tensor found = made({}, type);
  if (type == at::kDouble)
    *found.mutable_data_ptr<double>() = number;
  else
    *found.mutable_data_ptr<float>() = static_cast<float>(number);
  return found;
}

struct Reduced : torch::autograd::Function<Reduced> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor&,
                            const at::Tensor& slopes, double total, int64_t type) {
    context->save_for_backward({slopes});
    return scalar(total, static_cast<at::ScalarType>(type));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    torch::autograd::variable_list found(4);
    if (!grads[0].defined()) return found;
    const at::Tensor slopes = context->get_saved_variables()[0];
    if (at::GradMode::is_enabled() || !plain_context() || !plain(grads[0]) || !grads[0].is_cpu()) {
      found[0] = grads[0].to(at::kDouble) * slopes;
      return found;
    }
    const double grad = grads[0].scalar_type() == at::kDouble
                            ? *grads[0].const_data_ptr<double>()
                            : static_cast<double>(*grads[0].const_data_ptr<float>());
    found[0] = made(slopes.sizes(), at::kDouble);
    double* const out = found[0].mutable_data_ptr<double>();
    const double* const slope = slopes.const_data_ptr<double>();
    for (int64_t b = 0; b < slopes.numel(); ++b) out[b] = grad * slope[b];
    return found;
  }
};

}  // namespace

std::optional<std::tuple<at::Tensor, at::Tensor>> reduced(const at::Tensor& value,
                                                          const at::Tensor& weight, double scale,
                                                          at::ScalarType type) {
  const int64_t batch = value.numel();
  at::Tensor terms = made({batch}, type), slopes = made({batch}, at::kDouble);
  const double* const values = value.const_data_ptr<double>();
  const double* const weights = weight.defined() ? weight.const_data_ptr<double>() : nullptr;
  double* const slope = slopes.mutable_data_ptr<double>();
  double total = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    const double w = weights == nullptr ? 1.0 : weights[b], term = values[b] * w;
    if (!std::isfinite(term)) return std::nullopt;
    slope[b] = w * scale;
    total += term;
    if (type == at::kDouble)
      terms.mutable_data_ptr<double>()[b] = term;
    else
      terms.mutable_data_ptr<float>()[b] = static_cast<float>(term);
  }
  total *= scale;
  const bool follow = at::GradMode::is_enabled() && value.requires_grad();
  at::Tensor loss = follow ? Reduced::apply(value, slopes, total, static_cast<int64_t>(type))
                           : scalar(total, type);
  return std::make_tuple(std::move(loss), std::move(terms));
}

}  // namespace cmsolvers
