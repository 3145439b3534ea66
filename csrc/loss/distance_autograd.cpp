// Derivatives of form_distance: one launch in the usual case; second derivatives, forward mode and
// transforms by formulas in torch.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "../python/plain.h"
#include "derivatives.h"
#include "distance.h"

namespace cmsolvers {
namespace {

using Tensors = std::vector<at::Tensor>;

constexpr double kFarAway = 0x1p60;  // see kFar in group.h

at::Tensor call_forward(at::TensorList inputs, const at::Tensor& weights, int64_t size, double c) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("cmsolvers::form_distance", "")
          .typed<at::Tensor(at::TensorList, const at::Tensor&, int64_t, double)>();
  return op.call(inputs, weights, size, c);
}

Tensors call_backward(const at::Tensor& grad, at::TensorList inputs, const at::Tensor& weights,
                      const at::Tensor& value, int64_t size, double c, c10::List<bool> wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("cmsolvers::form_distance_backward", "")
                             .typed<Tensors(const at::Tensor&, at::TensorList, const at::Tensor&,
                                            const at::Tensor&, int64_t, double, c10::List<bool>)>();
  return op.call(grad, inputs, weights, value, size, c, std::move(wanted));
}

// --- the formulas in torch, which can be differentiated again ---

bool any_wide(at::TensorList inputs) {
  return std::any_of(inputs.begin(), inputs.end(),
                     [](const at::Tensor& m) { return m.scalar_type() == at::kDouble; });
}

at::Tensor residual(at::TensorList inputs, const at::Tensor& weights) {
  const at::ScalarType wide = any_wide(inputs) ? at::kDouble : at::kFloat;
  at::Tensor total = at::zeros_like(inputs[0], inputs[0].options().dtype(wide));
  for (size_t k = 0; k < inputs.size(); ++k) {
    const at::Tensor w = per_sample(weights.select(0, k).to(wide), inputs[k]);
    total = at::where(w == 0, total, total + w * inputs[k].to(wide));
  }
  return total;
}

// sqrt(square + c^2), whose derivative at 0 is 0 where c is 0.
at::Tensor root(const at::Tensor& square, double c) {
  if (c != 0.0) return (square + c * c).sqrt();
  const at::Tensor zero = square == 0;
  return square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0);
}

at::Tensor sum_of(const at::Tensor& values) {
  const at::Tensor wide = values.to(at::kDouble);
  std::vector<int64_t> elements;
  for (int64_t d = 1; d < wide.dim(); ++d) elements.push_back(d);
  return elements.empty() ? wide : wide.sum(elements);
}

at::Tensor plain_value(at::TensorList inputs, const at::Tensor& weights, Size size, double c) {
  const at::Tensor r = residual(inputs, weights);
  if (size == Size::abs || (size == Size::huber && c == 0.0)) return sum_of(r.abs());
  if (size == Size::huber) {
    const at::Tensor q = r.abs(), far = q > kFarAway;
    const at::Tensor near = r.masked_fill(far, 0.0);
    return sum_of(at::where(far, q - c, near * (near / (root(near * near, c) + c))));
  }
  const at::Tensor square = sum_of(r.to(at::kDouble).square());
  if (size == Size::square) return square;
  const at::Tensor s = root(square, c);
  return c == 0.0 ? s : square / (s + c);
}

Tensors plain_gradients(const at::Tensor& grad, at::TensorList inputs, const at::Tensor& weights,
                        Size size, double c, const c10::List<bool>& wanted) {
  // Where nothing comes back to a sample, what is not finite counts as 0: its gradient is 0, not
  // 0 * NaN. What is finite stays, since the derivative by the gradient is wanted there too.
  const at::Tensor none = grad == 0;
  const auto fit = [&](const at::Tensor& values, const at::Tensor& of) {
    return at::where(of.logical_and(values.isfinite().logical_not()), 0.0, values);
  };
  const at::Tensor all = residual(inputs, weights), r = fit(all, per_sample(none, all));
  at::Tensor g = grad, slope = r;
  if (size == Size::pseudo_huber) {
    const at::Tensor s = root(sum_of(r.to(at::kDouble).square()), c);
    const at::Tensor zero = s == 0;
    g = (g / s.masked_fill(zero, 1.0)).masked_fill(zero, 0.0);
  } else if (size == Size::square) {
    slope = 2.0 * r;
  } else if (size == Size::abs || c == 0.0) {
    slope = at::where(r.isnan(), r, r.sign());  // as the kernel: torch has 0 for NaN
  } else {
    const at::Tensor far = r.abs() > kFarAway, near = r.masked_fill(far, 0.0);
    slope = at::where(far, r.sign(), near / root(near * near, c));
  }
  Tensors found;
  for (size_t k = 0; k < inputs.size(); ++k) {
    if (!wanted[k]) continue;
    const at::Tensor w = fit(weights.select(0, k), none);
    const at::Tensor factor = per_sample((w * g).to(r.scalar_type()), r);
    const at::Tensor absent = per_sample(w.to(r.scalar_type()), r) == 0;
    found.push_back((factor * slope).masked_fill(absent, 0.0).to(inputs[k].scalar_type()));
  }
  return found;
}

// --- the usual case ---

// Whether the kernel can be called without the dispatcher.
bool plain_case(const at::Tensor& grad, const Tensors& saved) {
  return !at::GradMode::is_enabled() && plain_context() && plain(grad) &&
         std::all_of(saved.begin(), saved.end(), plain);
}

struct FormDistance : torch::autograd::Function<FormDistance> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, at::TensorList inputs,
                            const at::Tensor& weights, int64_t size, double c, bool direct) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor value =
        direct ? form_distance(inputs, weights, size, c) : call_forward(inputs, weights, size, c);
    torch::autograd::variable_list saved(inputs.begin(), inputs.end());
    saved.push_back(weights);
    saved.push_back(value);
    context->save_for_backward(std::move(saved));
    context->saved_data["size"] = size;
    context->saved_data["c"] = c;
    return value;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const size_t n = saved.size() - 2;
    const int64_t size = context->saved_data["size"].toInt();
    const double c = context->saved_data["c"].toDouble();
    torch::autograd::variable_list found(n + 4);
    if (!grads[0].defined()) return found;
    const at::TensorList inputs(saved.data(), n);
    if (plain_case(grads[0], saved)) {
      std::array<bool, kMaxTerms> flags = {};
      for (size_t k = 0; k < n; ++k) flags[k] = context->needs_input_grad(k);
      Tensors made =
          form_distance_backward(grads[0], inputs, saved[n], saved[n + 1], size, c, flags);
      for (size_t k = 0, i = 0; k < n; ++k)
        if (flags[k]) found[k] = std::move(made[i++]);
      return found;
    }
    c10::List<bool> wanted;
    wanted.reserve(n);
    for (size_t k = 0; k < n; ++k) wanted.push_back(context->needs_input_grad(k));
    // Gradients that torch.autograd batches (is_grads_batched) go by formulas that have rules.
    const bool batched = grads[0].key_set().has(c10::DispatchKey::Batched);
    Tensors made =
        batched ? plain_gradients(grads[0], inputs, saved[n], static_cast<Size>(size), c, wanted)
                : call_backward(grads[0], inputs, saved[n], saved[n + 1], size, c, wanted);
    for (size_t k = 0, i = 0; k < n; ++k)
      if (wanted[k]) found[k] = std::move(made[i++]);
    return found;
  }
};

at::Tensor forward_autograd(at::TensorList inputs, const at::Tensor& weights, int64_t size,
                            double c) {
  check_constant("weights", weights);
  bool reverse = false, forward = false;
  for (const at::Tensor& m : inputs) {
    reverse = reverse || m.requires_grad();
    forward = forward || has_tangent(m);
  }
  if (forward || (reverse && at::GradMode::is_enabled() && transformed()))
    return plain_value(inputs, weights, static_cast<Size>(size), c);
  if (reverse && at::GradMode::is_enabled())
    return FormDistance::apply(inputs, weights, size, c, false);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_forward(inputs, weights, size, c);
}

Tensors backward_autograd(const at::Tensor& grad, at::TensorList inputs, const at::Tensor& weights,
                          const at::Tensor& value, int64_t size, double c, c10::List<bool> wanted) {
  if (followed(grad) || std::any_of(inputs.begin(), inputs.end(), followed))
    return plain_gradients(grad, inputs, weights, static_cast<Size>(size), c, wanted);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad, inputs, weights, value, size, c, std::move(wanted));
}

}  // namespace

at::Tensor form_distance_recorded(at::TensorList inputs, const at::Tensor& weights, int64_t size,
                                  double c) {
  return FormDistance::apply(inputs, weights, size, c, true);
}

TORCH_LIBRARY_IMPL(cmsolvers, Autograd, m) {
  m.impl("form_distance", &forward_autograd);
  m.impl("form_distance_backward", &backward_autograd);
}

}  // namespace cmsolvers
